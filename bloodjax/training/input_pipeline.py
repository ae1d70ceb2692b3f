"""From the config to the splits that a run trains, validates and tests on.

A new run reads, audits, cleans and splits its sources, and writes `splits.json` and `audit/`. A
resumed run reads its splits from `splits.json`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bloodjax.cli import console
from bloodjax.config import Config, read_options, split_source
from bloodjax.data import audit, bit_depth, sources
from bloodjax.data import splits as splits_lib
from bloodjax.data.dataset import Dataset
from bloodjax.data.options import ReadOptions
from bloodjax.data.reading import LeftOut, left_out_by_class
from bloodjax.errors import UserError
from bloodjax.report import audit_page

SPLITS = ("train", "validation", "test")
# Fraction of train that "auto" splits off if the source has no such split of its own.
DEFAULT_FRACTION = 0.15
# Bytes of the name of a source in the name of a folder; file systems allow 255.
_LONGEST_NAME = 120
# Names that sources give to their own splits.
_SOURCE_SPLIT = {"validation": "val", "test": "test"}


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


def prepare_splits(config: Config, workdir: pathlib.Path, resumes: bool) -> Splits:
    """Reads, audits, cleans and splits the images of a run.

    With `config.data.clean` = "drop", junk is removed from every split, and images that a later
    split contains too are removed from the earlier one, so that no test image was trained on.
    Duplicates within a source stay together in one split.

    Args:
      config: Config of the run.
      workdir: Folder of the run.
      resumes: Whether to read the splits from `splits.json` instead of drawing them.

    Raises:
      UserError: A source is invalid, has changed since `splits.json` was written or lacks a class,
        or the audit found something and `config.data.clean` is "fail".
    """
    specs = _specs(config)
    loaded = _load(config, specs)
    path = workdir / "splits.json"
    junk: dict[str, list[int]] = {}
    if resumes:
        indices = _recall(path, specs, loaded)
    else:
        findings = audit.audit(loaded)
        audit_page.write(findings, loaded, workdir / "audit")
        indices = _clean_and_split(config, loaded, findings)
        junk = {name: findings.junk_in(name) for name in loaded}
        _save(path, config.seed, specs, loaded, indices)
    splits = {name: loaded[_source(name, loaded)].take(index) for name, index in indices.items()}
    train = splits["train"]
    missing = set(range(len(train.classes))) - set(train.labels.tolist())
    if missing:
        raise UserError(
            f"{config.data.train}: no image of {train.classes[min(missing)]} is left to train "
            "on, expected at least one of each class"
        )
    return Splits(
        train,
        splits.get("validation"),
        splits.get("test"),
        left_out=_left_out(
            loaded, indices, junk, "left out at the start" if resumes else "leaking"
        ),
    )


def select(
    config: Config,
    splits_file: pathlib.Path,
    classes: Sequence[str],
    spec: str,
    split: str | None,
) -> tuple[str, Dataset]:
    """Reads the images that a trained run is to be evaluated on.

    Args:
      config: Config of the run.
      splits_file: `splits.json` of the run.
      classes: Class names of the run; the labels follow their order.
      spec: SPEC of the images.
      split: If the run was trained on this source, one of the run's splits; by default the last
        one that comes from it. For another source, one of the source's own splits; by default
        "test" if it has several, and otherwise everything.

    Returns:
      A name for the images, and the images.

    Raises:
      UserError: The source is invalid, or has no such split.
    """
    dataset = sources.load(
        spec,
        config.data.image_size,
        options=read_options(config),
        class_names=classes,
        seed=config.seed,
    )
    saved = splits_lib.load(splits_file)
    fingerprint = sources.fingerprint(spec)
    own = [name for name in SPLITS if _is_of(saved, name, fingerprint)]
    if "train" in own:
        name = split or own[-1]
        if name not in own:
            raise UserError(f"--split={name}: {spec} has the splits {', '.join(own)} of this run")
        return name, dataset.take(_positions(dataset, saved["parts"][name]))
    available = sorted(set(dataset.splits))
    stem = source_name(spec)
    if split is None and (len(available) == 1 or "test" not in available):
        return stem, dataset
    split = split or "test"
    if split not in available:
        raise UserError(
            f"--split={split}: {spec} has the splits {', '.join(filter(None, available)) or 'none'}"
        )
    return f"{stem}-{split}", dataset.take(np.array(dataset.splits) == split)


def source_name(spec: str) -> str:
    """A file name for results on a source that is not the run's own, such as "set.v1".

    It is the name of the file or folder without ".npz" or ".zip". It is never the name of a run's
    split: results on test.zip are not those on the run's test split.
    """
    path = pathlib.Path(os.path.abspath(os.path.expanduser(spec)))
    named = path.stem if path.suffix.lower() in (".npz", ".zip") else path.name
    name = re.sub(r"[^\w.-]+", "-", named).strip("-.")
    name = name.encode()[:_LONGEST_NAME].decode(errors="ignore") or "data"
    return f"{name}-data" if name.lower().startswith((*SPLITS, "out_of_fold")) else name


def recall(config: Config, splits_file: pathlib.Path, classes: Sequence[str], name: str) -> Dataset:
    """Reads a split of a trained run from the source that its `splits.json` names.

    Args:
      config: Config of the run.
      splits_file: `splits.json` of the run.
      classes: Class names of the run; the labels follow their order.
      name: "train", "validation" or "test".

    Raises:
      UserError: The run has no such split, or its source is missing or has changed.
    """
    saved = splits_lib.load(splits_file)
    if name not in saved["parts"]:
        raise UserError(f"{splits_file}: the run has no {name} split")
    source = saved["sources"][name]
    if sources.fingerprint(source["spec"]) != source["fingerprint"]:
        raise UserError(
            f"{source['spec']}: has changed since {splits_file} was written; expected the same data"
        )
    dataset = sources.load(
        source["spec"],
        config.data.image_size,
        options=read_options(config),
        class_names=classes,
        seed=config.seed,
    )
    return dataset.take(_positions(dataset, saved["parts"][name]))


def trained_on(splits_file: pathlib.Path, spec: str, names: Sequence[str]) -> int:
    """Number of the images `names` of `spec` that a run was trained on."""
    saved = splits_lib.load(splits_file)
    if not _is_of(saved, "train", sources.fingerprint(spec)):
        return 0
    return len(set(names) & set(saved["parts"]["train"]))


def _is_of(saved: Mapping[str, Any], split: str, fingerprint: str) -> bool:
    return split in saved["parts"] and saved["sources"][split]["fingerprint"] == fingerprint


def _positions(dataset: Dataset, names: Sequence[str]) -> np.ndarray:
    position = {name: i for i, name in enumerate(dataset.names)}
    return np.array([position[name] for name in names], int)


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


def _load(config: Config, specs: Mapping[str, str]) -> dict[str, Dataset]:
    options = read_options(config)
    loaded = {}

    def load(name: str, options: ReadOptions) -> None:
        loaded[name] = sources.load(
            specs[name],
            config.data.image_size,
            options=options,
            class_names=loaded["train"].classes if "train" in loaded else config.data.classes,
            seed=config.seed,
        )

    for name in specs:
        load(name, options)
    # All sources of a run have one scale. It is rare that they differ, so reading twice is cheap.
    try:
        scale = bit_depth.widest([dataset.reading.tally.scale for dataset in loaded.values()])
    except ValueError as error:
        raise UserError(f"{', '.join(specs.values())}: {error}") from error
    for name, dataset in loaded.items():
        if dataset.reading.tally.scale not in ("", scale):
            load(name, dataclasses.replace(options, bits=scale))
    return loaded


def _source(split: str, loaded: Mapping[str, Dataset]) -> str:
    """Name of the source that `split` comes from."""
    return split if split in loaded else "train"


def _clean_and_split(
    config: Config, loaded: Mapping[str, Dataset], findings: audit.Audit
) -> dict[str, np.ndarray]:
    if config.data.clean == "fail" and (
        findings.junk or findings.label_conflicts or findings.leakage
    ):
        raise UserError(
            f"the audit found {console.counted(len(findings.junk), 'junk image')}, "
            f"{console.counted(len(findings.label_conflicts), 'label conflict')} and "
            f"{console.counted(len(findings.leakage), 'leak')}; config.data.clean is fail"
        )
    drop = config.data.clean == "drop"
    indices = {}
    for name, dataset in loaded.items():
        junk = findings.junk_in(name) if drop else []
        indices[name] = np.setdiff1d(np.arange(len(dataset)), junk)
    groups = splits_lib.merge_groups(loaded["train"].groups, findings.duplicates_in("train"))
    indices |= _split_train(config, loaded["train"], indices["train"], groups)
    if drop:
        indices = _without_leaks(loaded, indices, findings)
    return {name: indices[name] for name in SPLITS if name in indices}


def _split_train(
    config: Config, dataset: Dataset, kept: np.ndarray, groups: np.ndarray
) -> dict[str, np.ndarray]:
    """Indices by split of the images `kept` of train's source: its own splits, or fractions."""
    own = np.array(dataset.splits)[kept]
    has_splits = len(set(own)) > 1
    if has_splits and "train" not in own:
        raise UserError(f"{config.data.train}: has splits, but none is called train")
    indices, fractions = {}, {}
    for name in ("validation", "test"):
        source = split_source(config, name)
        if source.is_auto and has_splits and _SOURCE_SPLIT[name] in own:
            indices[name] = kept[own == _SOURCE_SPLIT[name]]
        elif source.is_auto:
            fractions[name] = DEFAULT_FRACTION
        elif source.fraction:
            fractions[name] = source.fraction
    train = kept[own == "train"] if has_splits else kept
    rest = 1.0 - sum(fractions.values())
    if rest <= 0:
        raise UserError(f"config.data.validation and config.data.test leave {rest:.0%} to train on")
    drawn = splits_lib.split(
        dataset.labels[train], {"train": rest, **fractions}, groups[train], config.seed
    )
    return indices | {name: train[index] for name, index in drawn.items()}


def _without_leaks(
    loaded: Mapping[str, Dataset], indices: dict[str, np.ndarray], findings: audit.Audit
) -> dict[str, np.ndarray]:
    """Removes from each split the images that a later one contains too."""
    split_of = {
        (_source(name, loaded), int(i)): SPLITS.index(name)
        for name, index in indices.items()
        for i in index
    }
    leaked = set()
    for group in findings.leakage:
        members = [(image.key, image.index) for image in group]
        found = [split_of[member] for member in members if member in split_of]
        leaked.update(m for m in members if m in split_of and split_of[m] < max(found))
    return {
        name: np.array([i for i in index if (_source(name, loaded), int(i)) not in leaked], int)
        for name, index in indices.items()
    }


def _left_out(
    loaded: Mapping[str, Dataset],
    indices: Mapping[str, np.ndarray],
    junk: Mapping[str, Sequence[int]],
    otherwise: str,
) -> tuple[LeftOut, ...]:
    """The images that are in no split: junk, those of a split that is not used, or `otherwise`."""
    left_out: list[LeftOut] = []
    for name, dataset in loaded.items():
        used = [index for split, index in indices.items() if _source(split, loaded) == name]
        rest = np.setdiff1d(np.arange(len(dataset)), np.concatenate([*used, []]).astype(int))
        splits_used = {dataset.splits[i] for index in used for i in index}
        is_junk = set(junk.get(name, ()))
        reasons: dict[str, list[str]] = {}
        for i in rest.tolist():
            split = dataset.splits[i]
            is_used = not split or split in splits_used
            reason = otherwise if is_used else f"of the unused split {split}"
            label = dataset.classes[dataset.labels[i]]
            reasons.setdefault("junk" if i in is_junk else reason, []).append(label)
        for reason, labels in reasons.items():
            left_out += left_out_by_class(reason, labels)
    return tuple(left_out)


def _save(
    path: pathlib.Path,
    seed: int,
    specs: Mapping[str, str],
    loaded: Mapping[str, Dataset],
    indices: Mapping[str, np.ndarray],
) -> None:
    source = {name: _source(name, loaded) for name in indices}
    fingerprints = {name: sources.fingerprint(spec) for name, spec in specs.items()}
    splits_lib.save(
        path,
        indices,
        {name: loaded[source[name]].names for name in indices},
        {name: {"spec": specs[s], "fingerprint": fingerprints[s]} for name, s in source.items()},
        seed,
    )


def _recall(
    path: pathlib.Path, specs: Mapping[str, str], loaded: Mapping[str, Dataset]
) -> dict[str, np.ndarray]:
    saved = splits_lib.load(path)
    fingerprints = {name: sources.fingerprint(spec) for name, spec in specs.items()}
    indices = {}
    for name, names in saved["parts"].items():
        source = _source(name, loaded)
        if saved["sources"][name]["fingerprint"] != fingerprints[source]:
            raise UserError(
                f"{specs[source]}: has changed since {path} was written; expected the same data, "
                "or another --workdir"
            )
        indices[name] = _positions(loaded[source], names)
    return indices
