"""From the config to the splits that a run trains, validates and tests on.

A new run reads, audits, cleans and splits its sources, and writes `splits.json` and `audit/`. A
resumed run reads its splits from `splits.json`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from bloodjax.cli import console
from bloodjax.config import Config, read_options, split_source
from bloodjax.data import audit, sources
from bloodjax.data import names as names_lib
from bloodjax.data import splits as splits_lib
from bloodjax.data.dataset import Dataset, count_classes, label_texts
from bloodjax.data.options import ReadOptions
from bloodjax.data.reading import LeftOut, left_out_by_class, merge
from bloodjax.errors import UserError
from bloodjax.io import bucket_urls, remote
from bloodjax.report import audit_page
from bloodjax.training import cleaning, saved_splits
from bloodjax.training.cleaning import SPLITS, source_of

# Fraction of train that "auto" splits off if the source has no such split of its own.
DEFAULT_FRACTION = 0.15


@dataclasses.dataclass(frozen=True)
class Splits:
    """The cleaned images of a run.

    Attributes:
      train: Training split.
      validation: Validation split, or None if `config.data.validation` is 0.
      test: Test split, or None if `config.data.test` is 0.
      validation_distorted: Distorted copy of validation (see `corrupted_splits`), or None.
      test_distorted: Distorted copy of test, or None.
      left_out: Images of the sources that are in no split, by reason and class.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    validation_distorted: Dataset | None = None
    test_distorted: Dataset | None = None
    left_out: tuple[LeftOut, ...] = ()

    def items(self) -> list[tuple[str, Dataset]]:
        """Name and images of the run's splits, without distorted copies."""
        return [(name, getattr(self, name)) for name in SPLITS if getattr(self, name) is not None]

    def evaluated(self, *names: str) -> dict[str, Dataset]:
        """Those of the splits `names` that exist, each followed by its distorted copy."""
        both = [split for name in names for split in (name, f"{name}_distorted")]
        return {split: getattr(self, split) for split in both if getattr(self, split) is not None}


def copy_sources(config: Config) -> None:
    """Copies sources that are in buckets to the cache; all machines of a run at the same time.

    Args:
      config: Config of the run.

    Raises:
      UserError: A source cannot be copied.
    """
    for spec in _specs(config).values():
        if bucket_urls.is_remote(spec):
            remote.local(spec)


def prepare_splits(config: Config, workdir: pathlib.Path, resumes: bool) -> Splits:
    """Reads, audits, cleans and splits the images of a run.

    With `config.data.clean` = "drop", `cleaning` removes junk from every split, and images that a
    later split contains too from the earlier one, so that no test image was trained on. Images of
    one group, and duplicates within a source, stay together in one split.

    Args:
      config: Config of the run.
      workdir: Folder of the run.
      resumes: Whether to read the splits from `splits.json` instead of drawing them.

    Raises:
      UserError: A source is invalid, is not the one that `splits.json` was written for, or has one
        class only; a split is empty or lacks a class to train on; cleaning would take too much of
        a class; or the audit found something and `config.data.clean` is "fail".
    """
    specs = _specs(config)
    path = workdir / saved_splits.SPLITS_FILE
    classes = splits_lib.load(path)["classes"] if resumes else None
    loaded, unused = _load(config, specs, classes)
    if len(loaded["train"].classes) < 2:
        raise UserError(
            f"{config.data.train}: all images are of one class ({loaded['train'].classes[0]}), "
            "expected two or more classes to tell apart"
        )
    if resumes:
        indices, left_out = _recall(path, config, specs, loaded)
    else:
        findings = audit.audit(loaded)
        page = audit_page.write(findings, loaded, workdir / "audit")
        for remark in cleaning.remarks(config, findings, page):
            console.log_info(remark)
        indices, left_out = _clean_and_split(config, loaded, findings, page)
        left_out = merge((*unused, *left_out))
        _save(path, config, specs, loaded, indices, findings.hashes, left_out)
    splits = {name: loaded[source_of(name, loaded)].take(index) for name, index in indices.items()}
    for remark in _remarks(config, splits) + _shared_groups(splits):
        console.log_info(remark)
    return Splits(splits["train"], splits.get("validation"), splits.get("test"), left_out=left_out)


def _specs(config: Config) -> dict[str, str]:
    """The SPEC of each split that has one of its own."""
    if not config.data.train:
        raise UserError("config.data.train is empty, expected a SPEC such as training_set.npz")
    specs = {"train": config.data.train}
    for name in ("validation", "test"):
        source = split_source(config, name)
        if source.spec is not None:
            specs[name] = source.spec
    return specs


def _load(
    config: Config, specs: Mapping[str, str], classes: Sequence[str] | None
) -> tuple[dict[str, Dataset], tuple[LeftOut, ...]]:
    """Reads the sources of a run; `classes` is None, or what `splits.json` of a resumed run has.

    See `_own_splits` for what is returned.
    """
    options = read_options(config)
    loaded: dict[str, Dataset] = {}
    given = config.data.classes
    # A run may have numbered the classes of a file that is known to have names by now.
    if classes and not given and names_lib.are_numbered(classes):
        given = classes

    def load(name: str, options: ReadOptions) -> Dataset:
        loaded[name] = sources.load(
            specs[name],
            config.data.image_size,
            options=options,
            class_names=loaded["train"].classes if "train" in loaded else given,
            # Labels of a file without names follow the names that the user gave, but need not
            # follow those of another source.
            positional=name == "train" or bool(config.data.classes),
            seed=config.seed,
        )
        if name == "train" and classes is not None:
            # Earlier versions did not record the order of the classes. They sorted all as texts.
            order = classes or config.data.classes or _earlier_order(loaded[name])
            loaded[name] = sources.in_label_order(loaded[name], order)
        return loaded[name]

    for name in specs:
        load(name, options)
        if name == "train":
            options = dataclasses.replace(options, first_label=loaded[name].reading.first_label)
    loaded = sources.on_common_scale(
        loaded, lambda name, bits: load(name, dataclasses.replace(options, bits=bits))
    )
    return _own_splits(specs, loaded)


def _earlier_order(dataset: Dataset) -> tuple[str, ...]:
    """The label order of a run whose `splits.json` has none: names of folders sorted as texts."""
    is_folders = "folder" in dataset.reading.layout
    return tuple(sorted(dataset.classes)) if is_folders else dataset.classes


def _own_splits(
    specs: Mapping[str, str], loaded: Mapping[str, Dataset]
) -> tuple[dict[str, Dataset], tuple[LeftOut, ...]]:
    """Of a source for validation or test that has such a split of its own, takes this one.

    Returns:
      The images of each source, and those of splits that no part takes.
    """
    taken, used = {}, {}
    for name, dataset in loaded.items():
        split = None if name == "train" else splits_lib.own_split(dataset, name)
        taken[name] = dataset if split is None else splits_lib.take_split(dataset, split)
        used.setdefault(specs[name], set()).update(
            set(dataset.splits) if split is None else {split}
        )
    entries = []
    for spec, dataset in {specs[name]: dataset for name, dataset in loaded.items()}.items():
        for split in sorted(set(dataset.splits) - used[spec]):
            names = label_texts(dataset.labels[np.array(dataset.splits) == split], dataset.classes)
            entries += left_out_by_class(f"of the unused split {split}", names)
    return taken, tuple(entries)


def _clean_and_split(
    config: Config,
    loaded: Mapping[str, Dataset],
    findings: audit.Audit,
    page: pathlib.Path,
) -> tuple[dict[str, np.ndarray], tuple[LeftOut, ...]]:
    """Indices of the images of each split in its source, and what was left out."""
    cleaning.check_allowed(config, findings)
    indices = cleaning.without_junk(config, loaded, findings)
    groups = splits_lib.merge_groups(loaded["train"].groups, findings.duplicates_in("train"))
    drawn, own_splits = _split_train(config, loaded["train"], indices["train"], groups)
    indices |= drawn
    indices = {name: indices[name] for name in SPLITS if name in indices}
    removed: dict[str, dict[str, np.ndarray]] = {}
    if config.data.clean == "drop":
        indices, removed = cleaning.without_leaks(loaded, indices, findings)
        for name, junk in cleaning.junk_by_split(loaded, own_splits, findings).items():
            removed[name][cleaning.JUNK] = junk
        cleaning.check_losses(loaded, indices, removed, findings, page)
    _check_filled(config, loaded["train"], indices, groups)
    return indices, cleaning.left_out(loaded, indices, removed)


def _split_train(
    config: Config, dataset: Dataset, kept: np.ndarray, groups: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Splits the images `kept` of train's source: by its own splits, or into fractions.

    Returns:
      Indices by split of the run, and the split of the run that takes each split of the source.
    """
    own = np.array(dataset.splits)
    has_splits = len(set(own)) > 1
    if has_splits and "train" not in own:
        raise UserError(f"{config.data.train}: has splits, but none is called train")
    own_splits = {"train": "train"} if has_splits else dict.fromkeys(dataset.splits, "train")
    indices, fractions = {}, {}
    for name in ("validation", "test"):
        source, own_name = split_source(config, name), splits_lib.SOURCE_NAMES[name]
        if source.is_auto and has_splits and own_name in own:
            indices[name] = kept[own[kept] == own_name]
            own_splits[own_name] = name
        elif source.is_auto:
            fractions[name] = DEFAULT_FRACTION
        elif source.fraction:
            fractions[name] = source.fraction
    train = kept[own[kept] == "train"] if has_splits else kept
    rest = 1.0 - sum(fractions.values())
    if rest <= 0:
        raise UserError(f"config.data.validation and config.data.test leave {rest:.0%} to train on")
    drawn = splits_lib.split(
        dataset.strata[train], {"train": rest, **fractions}, groups[train], config.seed
    )
    return indices | {name: train[index] for name, index in drawn.items()}, own_splits


def _check_filled(
    config: Config, source: Dataset, indices: Mapping[str, np.ndarray], groups: np.ndarray
) -> None:
    """Checks that each split has images, and that train has some of each class.

    Raises:
      UserError: It is not so; the message says why and what to do.
    """
    drawn = np.concatenate(
        [index for name, index in indices.items() if _is_drawn(config, name) or name == "train"]
    )
    n_groups = len(np.unique(groups[drawn]))
    why = f"the {console.counted(len(drawn), 'image')} of {config.data.train} "
    if n_groups < len(drawn):
        why += f"form {console.counted(n_groups, 'group')} (of a patient or slide, or duplicates)"
    else:
        why += "are too few"
    for name, index in indices.items():
        # The folds share the images of train and validation.
        if name != "train" and not len(index) and not (config.folds and name == "validation"):
            raise UserError(
                f"the {name} split is empty: {why}; expected more, another source as "
                f"config.data.{name}, or config.data.{name}=0 for none"
            )
    num_classes = len(source.classes)
    missing = np.flatnonzero(count_classes(source.labels[indices["train"]], num_classes) == 0)
    if len(missing):
        label = int(missing[0])
        elsewhere = [
            name
            for name, index in indices.items()
            if _is_drawn(config, name) and count_classes(source.labels[index], num_classes)[label]
        ]
        can_join = elsewhere and len(set(source.splits)) == 1
        why = f"; {why}" if n_groups < len(drawn) else ""
        where = f": all of them are in {' and '.join(elsewhere)}{why}" if elsewhere else ""
        raise UserError(
            f"{config.data.train}: no image of {source.classes[label]} is left to train on{where}; "
            "expected at least one of each class in train"
            + (", as with config.data.validation=0 and config.data.test=0" if can_join else "")
        )


def _is_drawn(config: Config, split: str) -> bool:
    """Whether validation or test may be a part of train's source."""
    return split != "train" and split_source(config, split).spec is None


def _remarks(config: Config, splits: Mapping[str, Dataset]) -> list[str]:
    """One line for each split whose metrics do not cover all classes."""
    lines = []
    for name, dataset in splits.items():
        if name == "train" or (config.folds and name == "validation"):
            continue
        counts = dataset.class_counts
        present, absent = np.flatnonzero(counts), np.flatnonzero(counts == 0)
        if len(present) == 1:
            lines.append(
                f"the {name} split has images of one class only, {dataset.classes[present[0]]}: "
                "its metrics do not show whether classes are told apart"
            )
        elif len(absent):
            shown = ", ".join(dataset.classes[i] for i in absent[:5])
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            lines.append(f"the {name} split has no image of {shown}{more}")
    return lines


def _shared_groups(splits: Mapping[str, Dataset]) -> list[str]:
    """One line if a group, such as a patient, has images in several splits, whoever made these.

    `cleaning` has left out such images unless `config.data.clean` is "report", an earlier version
    made the splits, or somebody has changed `splits.json`.
    """
    spanning = splits_lib.spanning_groups(splits)
    if not spanning:
        return []
    first = ", ".join(
        f"{group} in {' and '.join(parts)}" for group, parts in [*spanning.items()][:3]
    )
    more = f" and {len(spanning) - 3:,} more" if len(spanning) > 3 else ""
    verb = "has" if len(spanning) == 1 else "have"
    counted = console.counted(len(spanning), "group")
    return [
        f"{counted} {verb} images in several splits ({first}{more}), so the accuracy may be "
        "too high; config.data.clean=drop prevents it in a new run"
    ]


def _save(
    path: pathlib.Path,
    config: Config,
    specs: Mapping[str, str],
    loaded: Mapping[str, Dataset],
    indices: Mapping[str, np.ndarray],
    hashes: Mapping[str, np.ndarray],
    left_out: Sequence[LeftOut],
) -> None:
    source = {name: source_of(name, loaded) for name in indices}
    known = {
        spec: {
            "spec": spec,
            "fingerprint": sources.fingerprint(spec, options=read_options(config)),
            "path": bucket_urls.absolute(spec),
        }
        for spec in set(specs.values())
    }
    splits_lib.save(
        path,
        indices,
        {name: loaded[source[name]].names for name in indices},
        {name: known[specs[source[name]]] for name in indices},
        config.seed,
        classes=loaded["train"].classes,
        hashes={name: hashes[source[name]] for name in indices},
        groups={name: loaded[source[name]].groups for name in indices},
        left_out=left_out,
    )


def _recall(
    path: pathlib.Path,
    config: Config,
    specs: Mapping[str, str],
    loaded: Mapping[str, Dataset],
) -> tuple[dict[str, np.ndarray], tuple[LeftOut, ...]]:
    """Indices of the images of each split in its source, and what was left out, as saved."""
    saved = splits_lib.load(path)
    known = saved_splits.KnownSources(saved, read_options(config))
    indices = {}
    for name, names in saved["parts"].items():
        source = source_of(name, loaded)
        known.check(path, name, specs[source])
        indices[name] = saved_splits.positions(specs[source], loaded[source], names)
    for remark in known.remarks:
        console.log_info(remark)
    return indices, tuple(LeftOut(*entry) for entry in saved["left_out"])
