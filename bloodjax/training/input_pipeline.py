"""From the config to the parts that a run trains, selects and tests on.

Sources are read, audited, cleaned and shared out once; what came of it stands in `splits.json` and
`audit/`, and a run that goes on takes it from there.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bloodjax.config import Config
from bloodjax.config.validation import fraction
from bloodjax.data import sources, splits
from bloodjax.data.audit import audit
from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError
from bloodjax.report import audit_page

PARTS = ("train", "validation", "test")
# The share of train that a part gets where neither the config nor the source says.
DEFAULT_FRACTION = 0.15
_SPLIT_OF_PART = {"validation": "val", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Parts:
    """The cleaned parts of a run; `validation` and `test` are None where the config says 0.

    The distorted ones are the same images, distorted (see `training.corrupted_splits`), where the config asks.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset | None
    validation_distorted: Dataset | None = None
    test_distorted: Dataset | None = None

    def items(self) -> list[tuple[str, Dataset]]:
        """The parts that there are, by name."""
        return [(name, getattr(self, name)) for name in PARTS if getattr(self, name) is not None]

    def evaluated(self, *names: str) -> dict[str, Dataset]:
        """The parts `names` that there are, each followed by its distorted twin."""
        both = [part for name in names for part in (name, f"{name}_distorted")]
        return {part: getattr(self, part) for part in both if getattr(self, part) is not None}


def prepare(config: Config, workdir: pathlib.Path, resumes: bool) -> Parts:
    """Reads, audits, cleans and splits the data of a run; one that resumes has `splits.json`.

    Cleaning (`config.data.clean` = "drop") leaves junk out of every part, and leaves out of a part
    the images that a later part holds too, so that nothing is tested that was trained on.
    Duplicates within a part stay, on one side of every split.

    Raises:
      UserError: a source is wrong, has changed since `splits.json` was written, lacks a class, or
        the audit found something and `config.data.clean` is "fail".
    """
    specs = _specs(config)
    loaded = _load(config, specs)
    path = workdir / "splits.json"
    if resumes:
        indices = _recall(path, specs, loaded)
    else:
        findings = audit.audit(loaded)
        audit_page.write(findings, loaded, workdir / "audit")
        indices = _clean_and_split(config, loaded, findings)
        _save(path, config.seed, specs, loaded, indices)
    parts = {name: loaded[_source(name, loaded)].take(index) for name, index in indices.items()}
    train = parts["train"]
    missing = set(range(len(train.classes))) - set(train.labels.tolist())
    if missing:
        raise UserError(
            f"{config.data.train}: no image of {train.classes[min(missing)]} is left to train "
            "on, expected at least one of each class"
        )
    return Parts(train, parts.get("validation"), parts.get("test"))


def select(
    config: Config,
    splits_file: pathlib.Path,
    classes: Sequence[str],
    spec: str,
    split: str | None,
) -> tuple[str, Dataset]:
    """The images of `spec` to evaluate a trained run on, and a name for them.

    Args:
      config: the run's.
      splits_file: the run's `splits.json`.
      classes: the run's classes, whose order the labels take.
      spec: a SPEC.
      split: of a source that the run was trained on, one of its parts (by default the last that
        was drawn from it); of another, one of the source's splits (by default "test" where it has
        several, and everything otherwise).

    Raises:
      UserError: the source is wrong, or has no such split.
    """
    dataset = sources.load(
        spec,
        config.data.image_size,
        bad_images=config.data.bad_images,
        class_names=classes,
        seed=config.seed,
    )
    saved = splits.read(splits_file)
    fingerprint = sources.fingerprint(spec)
    own = [part for part in PARTS if _is_of(saved, part, fingerprint)]
    if "train" in own:
        part = split or own[-1]
        if part not in own:
            raise UserError(f"--split={part}: {spec} holds of this run {', '.join(own)}")
        return part, dataset.take(_positions(dataset, saved["parts"][part]))
    held = sorted(set(dataset.splits))
    stem = re.sub(r"[^\w.-]+", "-", pathlib.Path(spec).stem)
    if split is None and (len(held) == 1 or "test" not in held):
        return stem, dataset
    split = split or "test"
    if split not in held:
        raise UserError(
            f"--split={split}: {spec} has the splits {', '.join(filter(None, held)) or 'none'}"
        )
    return f"{stem}-{split}", dataset.take(np.array(dataset.splits) == split)


def recall(config: Config, splits_file: pathlib.Path, classes: Sequence[str], part: str) -> Dataset:
    """A part of a trained run, read from the source that its `splits.json` names.

    Raises:
      UserError: the run has no such part, or its source is missing or has changed.
    """
    saved = splits.read(splits_file)
    if part not in saved["parts"]:
        raise UserError(f"{splits_file}: the run has no {part} part")
    source = saved["sources"][part]
    if sources.fingerprint(source["spec"]) != source["fingerprint"]:
        raise UserError(
            f"{source['spec']}: has changed since {splits_file} was written; expected the same data"
        )
    dataset = sources.load(
        source["spec"],
        config.data.image_size,
        bad_images=config.data.bad_images,
        class_names=classes,
        seed=config.seed,
    )
    return dataset.take(_positions(dataset, saved["parts"][part]))


def trained_on(splits_file: pathlib.Path, spec: str, names: Sequence[str]) -> int:
    """How many of the images `names` of `spec` a run was trained on."""
    saved = splits.read(splits_file)
    if not _is_of(saved, "train", sources.fingerprint(spec)):
        return 0
    return len(set(names) & set(saved["parts"]["train"]))


def _is_of(saved: Mapping[str, Any], part: str, fingerprint: str) -> bool:
    return part in saved["parts"] and saved["sources"][part]["fingerprint"] == fingerprint


def _positions(dataset: Dataset, names: Sequence[str]) -> np.ndarray:
    position = {name: i for i, name in enumerate(dataset.names)}
    return np.array([position[name] for name in names], int)


def _specs(config: Config) -> dict[str, str]:
    """The SPEC of each part that has one of its own."""
    if not config.data.train:
        raise UserError("config.data.train is empty, expected a SPEC such as training_set.npz")
    specs = {"train": config.data.train}
    for name in ("validation", "test"):
        value = config.data[name]
        if value != "auto" and fraction(value) is None:
            specs[name] = value
    return specs


def _load(config: Config, specs: Mapping[str, str]) -> dict[str, Dataset]:
    loaded = {}
    for name, spec in specs.items():
        classes = loaded["train"].classes if "train" in loaded else config.data.classes
        loaded[name] = sources.load(
            spec,
            config.data.image_size,
            bad_images=config.data.bad_images,
            class_names=classes,
            seed=config.seed,
        )
    return loaded


def _source(part: str, loaded: Mapping[str, Dataset]) -> str:
    """The part whose SPEC holds `part`."""
    return part if part in loaded else "train"


def _clean_and_split(
    config: Config, loaded: Mapping[str, Dataset], findings: audit.Audit
) -> dict[str, np.ndarray]:
    if config.data.clean == "fail" and (
        findings.junk or findings.label_conflicts or findings.leakage
    ):
        raise UserError(
            f"the audit found {len(findings.junk)} junk images, {len(findings.label_conflicts)} "
            f"label conflicts and {len(findings.leakage)} leaks; config.data.clean is fail"
        )
    drop = config.data.clean == "drop"
    indices = {}
    for name, dataset in loaded.items():
        junk = findings.junk_in(name) if drop else []
        indices[name] = np.setdiff1d(np.arange(len(dataset)), junk)
    groups = splits.merge_groups(loaded["train"].groups, findings.duplicates_in("train"))
    indices |= _share_out(config, loaded["train"], indices["train"], groups)
    if drop:
        indices = _without_leaks(loaded, indices, findings)
    return {name: indices[name] for name in PARTS if name in indices}


def _share_out(
    config: Config, dataset: Dataset, kept: np.ndarray, groups: np.ndarray
) -> dict[str, np.ndarray]:
    """The images `kept` of train's source, by part: its own splits, or fractions of its train."""
    own = np.array(dataset.splits)[kept]
    has_splits = len(set(own)) > 1
    if has_splits and "train" not in own:
        raise UserError(f"{config.data.train}: holds splits, but none is called train")
    indices, shares = {}, {}
    for name in ("validation", "test"):
        value = config.data[name]
        if value == "auto" and has_splits and _SPLIT_OF_PART[name] in own:
            indices[name] = kept[own == _SPLIT_OF_PART[name]]
        elif value == "auto":
            shares[name] = DEFAULT_FRACTION
        elif fraction(value):
            shares[name] = fraction(value)
    train = kept[own == "train"] if has_splits else kept
    rest = 1.0 - sum(shares.values())
    if rest <= 0:
        raise UserError(f"config.data.validation and config.data.test leave {rest:.0%} to train on")
    drawn = splits.split(
        dataset.labels[train], {"train": rest, **shares}, groups[train], config.seed
    )
    return indices | {name: train[index] for name, index in drawn.items()}


def _without_leaks(
    loaded: Mapping[str, Dataset], indices: dict[str, np.ndarray], findings: audit.Audit
) -> dict[str, np.ndarray]:
    """Leaves out of each part what a later one holds too."""
    part_of = {
        (_source(name, loaded), int(i)): PARTS.index(name)
        for name, index in indices.items()
        for i in index
    }
    leaked = set()
    for group in findings.leakage:
        members = [(image.key, image.index) for image in group]
        found = [part_of[member] for member in members if member in part_of]
        leaked.update(m for m in members if m in part_of and part_of[m] < max(found))
    return {
        name: np.array([i for i in index if (_source(name, loaded), int(i)) not in leaked], int)
        for name, index in indices.items()
    }


def _save(
    path: pathlib.Path,
    seed: int,
    specs: Mapping[str, str],
    loaded: Mapping[str, Dataset],
    indices: Mapping[str, np.ndarray],
) -> None:
    source = {name: _source(name, loaded) for name in indices}
    prints = {name: sources.fingerprint(spec) for name, spec in specs.items()}
    splits.save(
        path,
        indices,
        {name: loaded[source[name]].names for name in indices},
        {name: {"spec": specs[s], "fingerprint": prints[s]} for name, s in source.items()},
        seed,
    )


def _recall(
    path: pathlib.Path, specs: Mapping[str, str], loaded: Mapping[str, Dataset]
) -> dict[str, np.ndarray]:
    saved = splits.read(path)
    prints = {name: sources.fingerprint(spec) for name, spec in specs.items()}
    indices = {}
    for name, names in saved["parts"].items():
        source = _source(name, loaded)
        if saved["sources"][name]["fingerprint"] != prints[source]:
            raise UserError(
                f"{specs[source]}: has changed since {path} was written; expected the same data, "
                "or another --workdir"
            )
        indices[name] = _positions(loaded[source], names)
    return indices
