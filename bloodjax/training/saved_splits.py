"""The splits of a trained run, and which images of any source the run was trained on."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt64

from bloodjax.cli import console
from bloodjax.config import Config, read_options, with_reading
from bloodjax.data import fingerprint, sources
from bloodjax.data import splits as splits_lib
from bloodjax.data.dataset import Dataset, label_texts
from bloodjax.data.options import AUTO, DEFAULTS, ReadOptions
from bloodjax.data.reading import left_out_by_class
from bloodjax.data.spec import is_table
from bloodjax.errors import UserError
from bloodjax.training.cleaning import SPLITS

SPLITS_FILE = "splits.json"
# In place of the fingerprint of a source, in an exported model.
NOT_SHARED = "not shared"
# Names of the results that a run, or several, write of the run's own images.
_OWN_RESULTS = (
    "out_of_fold",
    *(n + end for n in SPLITS for end in ("", "_distorted", "-ensemble")),
)
# Bytes of the name of a source in the name of a folder; file systems allow 255.
_LONGEST_NAME = 120


class KnownSources:
    """The sources that a `splits.json` names, by the contents of the sources.

    Attributes:
      remarks: What was found out about sources that were asked for, one line each.
    """

    def __init__(self, saved: Mapping[str, Any], options: ReadOptions = DEFAULTS):
        """Takes what `splits.load` returns, and how the images of a source are read."""
        self._sources = saved["sources"]
        self._options = options
        self._same: dict[tuple[str, str], bool] = {}
        self.remarks: list[str] = []

    def is_source(self, part: str, spec: str) -> bool:
        """Whether a source has the images that the split `part` is from.

        Raises:
          UserError: The source is missing or damaged.
        """
        if part not in self._sources:
            return False
        known = self._sources[part]
        key = (spec, known["fingerprint"])
        if key not in self._same:
            self._same[key] = sources.has_fingerprint(*key, options=self._options)
            if self._same[key] and spec != known["spec"]:
                self.remarks.append(f"{spec}: the same data as the run's {known['spec']}")
        return self._same[key]

    def check(self, path: pathlib.Path, part: str, spec: str) -> None:
        """Checks that a source is the one that the split `part` is from.

        Args:
          path: The `splits.json`, for the message.
          part: Name of a split.
          spec: SPEC of the source.

        Raises:
          UserError: It is another one, or has changed.
        """
        if self.is_source(part, spec):
            return
        original = self._sources[part]["spec"]
        found = (
            "has changed since" if spec == original else f"has other images than {original} when"
        )
        raise UserError(
            f"{spec}: {found} {path} was written; expected the same data, or another --workdir"
        )

    def locate(self, path: pathlib.Path, part: str, others: Sequence[str] = ()) -> str:
        """A SPEC of the source of the split `part`, which may have moved.

        Args:
          path: The `splits.json`, for the message.
          part: Name of a split.
          others: SPECs to try where the saved ones are missing or have changed.

        Raises:
          UserError: The source is missing or has changed, or an exported model does not name it.
        """
        known = self._sources[part]
        if known["fingerprint"] == NOT_SHARED:
            raise UserError(
                f"{path.parent}: is an exported model, without its images; expected the folder of "
                "a run"
            )
        specs = dict.fromkeys((known["spec"], known.get("path", known["spec"]), *others))
        for spec in specs:
            try:
                if self.is_source(part, spec):
                    return spec
            except UserError:
                continue
        self.check(path, part, known["spec"])
        return known["spec"]


def select(
    config: Config,
    splits_file: pathlib.Path,
    classes: Sequence[str],
    spec: str,
    split: str | None,
    layout: str | None = None,
    fit: str | None = None,
    images: str | None = None,
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
      layout: What the folders of the source mean; by default as the run read its own source, and
        for another source as their names say.
      fit: How images of another source become squares; by default as in training.
      images: Folder of the images of another source that is a table; by default the table's own.

    Returns:
      A name for the images, and the images.

    Raises:
      UserError: The source is invalid, or has no such split.
    """
    saved = splits_lib.load(splits_file)
    known = KnownSources(saved, read_options(config))
    own = [name for name in SPLITS if known.is_source(name, spec)]
    is_own = "train" in own
    config = with_reading(
        config,
        layout=layout or (None if own else AUTO),
        fit=None if own else fit,
        images=None if own else images or "",
    )
    dataset = _load(config, spec, classes, is_own)
    if is_own:
        name = split or own[-1]
        if name not in own:
            raise UserError(f"--split={name}: {spec} has the splits {', '.join(own)} of this run")
        for remark in known.remarks:
            console.log_info(f"{remark}; its {name} split is taken")
        return name, dataset.take(positions(spec, dataset, saved["parts"][name]))
    stem = source_name(spec)
    if split is None:
        split = splits_lib.own_split(dataset, "test")
        if split is None:
            return stem, dataset
    if split not in dataset.splits:
        available = sorted(set(dataset.splits) - {""})
        if not available:
            raise UserError(
                f"--split={split}: {spec} has no splits; expected the command without it"
            )
        raise UserError(f"--split={split}: {spec} has the splits {', '.join(available)}")
    return f"{stem}-{split}", _take_split(dataset, split)


def recall(
    config: Config,
    splits_file: pathlib.Path,
    classes: Sequence[str],
    name: str,
    *,
    lazy: bool = False,
) -> Dataset:
    """Reads a split of a trained run from the source that its `splits.json` names.

    Args:
      config: Config of the run.
      splits_file: `splits.json` of the run.
      classes: Class names of the run; the labels follow their order.
      name: "train", "validation" or "test".
      lazy: Whether images of a folder or zip are read only when they are indexed.

    Raises:
      UserError: The run has no such split, or its source is missing or has changed.
    """
    saved = splits_lib.load(splits_file)
    if name not in saved["parts"]:
        raise UserError(f"{splits_file}: the run has no {name} split")
    others = [config.data[key] for key in (name, "train")]
    known = KnownSources(saved, read_options(config))
    spec = known.locate(splits_file, name, [str(other) for other in others])
    is_own = saved["sources"][name] == saved["sources"]["train"]
    dataset = _load(config, spec, classes, is_own, lazy)
    return dataset.take(positions(spec, dataset, saved["parts"][name]))


def trained_on(
    runs: Mapping[pathlib.Path, Config],
    classes: Sequence[str],
    dataset: Dataset,
    read_with: Config,
    read_again: Callable[[Config], Dataset],
) -> tuple[Bool[np.ndarray, " n"], list[pathlib.Path]]:
    """Which images any of several runs was trained on, by their pixels.

    The images may be in another file, in other formats without loss, and under other names.

    Args:
      runs: Folder of each run -> its config.
      classes: Class names of the runs.
      dataset: The images.
      read_with: Config that they were read with. If its `data.fit` is another than a run's, it is
        that of the site that the run was adapted to.
      read_again: Reads them with the config of a run that reads images of another size, scale or
        fit.

    Returns:
      A mask, and the folders of the runs for which this is not known: earlier versions kept no
      hashes, and their training images cannot be read any more.
    """
    hashes = {_reads_as(read_with): fingerprint.of_images(dataset.images)}
    mask, unknown = np.zeros(len(dataset), bool), []
    for folder, config in runs.items():
        known = _train_hashes(config, folder / SPLITS_FILE, classes)
        if known is None:
            unknown.append(folder)
            continue
        form = _reads_as(config)
        if form not in hashes:
            hashes[form] = fingerprint.of_images(read_again(config).images)
        mask |= fingerprint.is_among(hashes[form], known)
        # The labelled images of a site have the hashes that they have there.
        at_site = (*form[:-1], read_with.data.fit)
        if at_site in hashes:
            mask |= fingerprint.is_among(hashes[at_site], known)
    return mask, unknown


def of_trained_groups(
    runs: Mapping[pathlib.Path, Config], classes: Sequence[str], dataset: Dataset
) -> tuple[Bool[np.ndarray, " n"], list[pathlib.Path]]:
    """Which images are of a group, such as a patient, that any of several runs was trained on.

    Groups are compared by their keys; see `splits.hash_groups` for the exception.

    Args:
      runs: Folder of each run -> its config.
      classes: Class names of the runs.
      dataset: The images.

    Returns:
      A mask, and the folders of the runs for which this is not known: earlier versions and exported
      models have no groups, and their training images cannot be read.
    """
    mask, unknown = np.zeros(len(dataset), bool), []
    different = sorted(set(dataset.groups) - {""})
    if not different:
        return mask, unknown
    hashes = fingerprint.of_texts(different)
    for folder, config in runs.items():
        known = _train_groups(config, folder / SPLITS_FILE, classes)
        if known is None:
            unknown.append(folder)
            continue
        is_known = fingerprint.is_among(hashes, known)
        trained = {group for group, own in zip(different, is_known.tolist(), strict=True) if own}
        mask |= np.array([group in trained for group in dataset.groups], bool)
    return mask, unknown


def source_name(spec: str) -> str:
    """A file name for results on a source that is not the run's own, such as "set.v1".

    It is the name of the file or folder without ".npz", ".zip" or the suffix of a table. It is
    never the name of a run's split: results on test.zip are not those on the run's test split.
    """
    path = pathlib.Path(os.path.abspath(os.path.expanduser(spec)))
    is_file = path.suffix.lower() in (".npz", ".zip") or is_table(spec)
    named = path.stem if is_file else path.name
    name = re.sub(r"[^\w.-]+", "-", named).strip("-.")
    name = name.encode()[:_LONGEST_NAME].decode(errors="ignore") or "data"
    return f"{name}-data" if name.lower() in _OWN_RESULTS else name


def positions(spec: str, dataset: Dataset, names: Sequence[str]) -> Int[np.ndarray, " m"]:
    """Index of each of `names` in `dataset`, whatever the Unicode form of the names.

    Raises:
      UserError: An image is missing.
    """
    position = {name: i for i, name in enumerate(dataset.names)}
    if not all(name in position for name in names):
        position = {fingerprint.normal_name(name): i for name, i in position.items()} | position
    found = [position.get(name, position.get(fingerprint.normal_name(name))) for name in names]
    if None in found:
        raise UserError(
            f"{spec}: has no image {names[found.index(None)]}, expected all images of the run"
        )
    return np.array(found, int)


def _load(
    config: Config, spec: str, classes: Sequence[str], is_own: bool, lazy: bool = False
) -> Dataset:
    """Reads a source; `is_own` says whether it is the one that the run was trained on."""
    return sources.load(
        spec,
        config.data.image_size,
        options=read_options(config),
        class_names=classes,
        # As the run read them: the labels of a file without names follow those that the user gave.
        positional=is_own or bool(config.data.classes),
        seed=config.seed,
        lazy=lazy,
    )


def _take_split(dataset: Dataset, split: str) -> Dataset:
    taken = splits_lib.take_split(dataset, split)
    entries = []
    for other in sorted(set(dataset.splits) - {split}):
        names = label_texts(dataset.labels[np.array(dataset.splits) == other], dataset.classes)
        entries += left_out_by_class(f"of the split {other}" if other else "of no split", names)
    return taken.with_reading(taken.reading.with_left_out(*entries))


def _train_hashes(
    config: Config, splits_file: pathlib.Path, classes: Sequence[str]
) -> UInt64[np.ndarray, " n"] | None:
    saved = splits_lib.load(splits_file)
    adapted_to = fingerprint.from_text(saved.get(splits_lib.ADAPTED_TO, ""))
    if "train" in saved["pixels"]:
        return np.concatenate([fingerprint.from_text(saved["pixels"]["train"]), adapted_to])
    try:  # an earlier version kept no hashes
        train = recall(config, splits_file, classes, "train")
    except UserError:
        return None
    return np.concatenate([fingerprint.of_images(train.images), adapted_to])


def _train_groups(
    config: Config, splits_file: pathlib.Path, classes: Sequence[str]
) -> UInt64[np.ndarray, " n"] | None:
    saved = splits_lib.load(splits_file)["groups"]
    text = saved.get("train")
    if text is None:
        try:  # an earlier version kept no groups
            train = recall(config, splits_file, classes, "train", lazy=True)
        except UserError:
            return None
        text = splits_lib.hash_groups(train.groups)
    texts = text, saved.get(splits_lib.ADAPTED_TO, "")
    return np.concatenate([fingerprint.from_text(each) for each in texts])


def _reads_as(config: Config) -> tuple:
    options = read_options(config)
    return config.data.image_size, options.bits, options.fit
