"""The splits of a dataset of the library `datasets` of Hugging Face, by name.

`hf-dataset:OWNER/NAME[@REVISION][:CONFIG]` is a dataset of the Hub. It is read from the library's
cache if it is there, and else downloaded. A folder that `save_to_disk` has written is a SPEC by
itself. This is the only module that imports `datasets`, from the extra `hf-datasets`. Versions from
4 on execute no code of a dataset.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from bloodjax.errors import UserError

PREFIX = "hf-dataset:"

_SPEC = re.compile(r"(\w[\w.-]*)/(\w[\w.-]*)(?:@([\w./-]+))?(?::([\w .+-]+))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{7,40}")
_TRUE = ("1", "true", "yes", "on")
# The files that show that `save_to_disk` has written a folder: of one split, or of several.
_OF_SPLIT, _OF_SPLITS = ("state.json", "dataset_info.json"), "dataset_dict.json"


class Splits(NamedTuple):
    """The splits of a dataset.

    Attributes:
      by_name: Name of each split that has rows -> its `datasets.Dataset`. The name is "" if a
        folder has a single split without a name.
      details: Facts for `Reading.details`.
    """

    by_name: Mapping[str, Any]
    details: tuple[str, ...]


def is_hub(spec: str) -> bool:
    """Whether a SPEC names a dataset of the Hub."""
    return spec.startswith(PREFIX)


def is_saved(path: pathlib.Path) -> bool:
    """Whether `save_to_disk` has written a folder."""
    return (path / _OF_SPLITS).is_file() or all((path / name).is_file() for name in _OF_SPLIT)


def library(spec: str) -> types.ModuleType:
    """The module `datasets`.

    Raises:
      UserError: It is not installed or too old; the message names `spec`.
    """
    try:
        import datasets  # takes a second, and most runs do not need it
    except ImportError:
        raise UserError(
            f"{spec}: reading it needs the library datasets: pip install 'bloodjax[hf-datasets]'"
        ) from None
    if int(datasets.__version__.partition(".")[0]) < 4:  # earlier ones may execute a dataset's code
        raise UserError(
            f"{spec}: found datasets {datasets.__version__}, expected version 4 or later"
        )
    return datasets


def read(spec: str) -> Splits:
    """The splits of a dataset of the Hub, or of a folder that `save_to_disk` has written.

    Raises:
      UserError: The dataset is not there, is damaged, or has no rows.
    """
    found = _of_hub(spec) if is_hub(spec) else Splits(_saved(spec), ())
    by_name = {name: rows for name, rows in found.by_name.items() if len(rows)}
    if not by_name:
        raise UserError(f"{spec}: has no rows, expected at least one")
    return found._replace(by_name=by_name)


def validate(spec: str, splits: Mapping[str, Any], columns: Collection[str]) -> None:
    """Checks the memory layout of columns. Reading one that is damaged would end the process.

    Raises:
      UserError: A file is damaged.
    """
    for split, rows in splits.items():
        try:
            rows.select_columns([*columns]).data.validate(full=True)
        except Exception as error:  # of pyarrow, which has no common type
            raise UserError(
                f"{spec}: the Arrow files of split {split or 'train'} are damaged "
                f"({str(error)[:200]})"
            ) from error


def _saved(spec: str) -> dict[str, Any]:
    datasets = library(spec)
    try:
        found = datasets.load_from_disk(os.path.expanduser(spec))
    except Exception as error:  # its parsers raise any type on damaged files
        raise UserError(
            f"{spec}: cannot be read as a dataset that save_to_disk has written "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if isinstance(found, datasets.Dataset):
        return {"" if found.split is None else str(found.split): found}
    return dict(found)


@dataclasses.dataclass(frozen=True)
class _HubSpec:
    """The parts of a SPEC of a dataset of the Hub; `text` is all of it."""

    text: str
    owner: str
    name: str
    revision: str | None
    config: str | None

    def fits(self, build: _Build) -> bool:
        """Whether a build in the cache is of the revision and the config."""
        if build.config != (self.config or "default"):
            return False
        if self.revision is None:
            return True
        return bool(_COMMIT.fullmatch(self.revision)) and build.hash.startswith(self.revision)


@dataclasses.dataclass(frozen=True)
class _Build:
    """A dataset in the library's cache: CONFIG/VERSION/HASH, where HASH is a commit."""

    path: pathlib.Path

    @property
    def hash(self) -> str:
        return self.path.name

    @property
    def config(self) -> str:
        return self.path.parent.parent.name


def _of_hub(text: str) -> Splits:
    match = _SPEC.fullmatch(text.removeprefix(PREFIX))
    if not match:
        raise UserError(
            f"{text}: expected {PREFIX}OWNER/NAME[@REVISION][:CONFIG], such as "
            f"{PREFIX}OWNER/cells@main; a folder that save_to_disk has written is given by its path"
        )
    spec, datasets = _HubSpec(text, *match.groups()), library(text)
    builds = _cached(datasets, spec)
    if fitting := [build for build in builds if spec.fits(build)]:
        newest = max(fitting, key=lambda build: build.path.stat().st_mtime)
        details = (f"revision {newest.hash}, from the cache",)
        return Splits(_prepared(datasets, spec, newest.path), details)
    if _is_offline(datasets):
        raise _not_cached(spec, builds, "HF_HUB_OFFLINE is set")
    return _downloaded(datasets, spec, builds)


def _not_cached(spec: _HubSpec, builds: Sequence[_Build], why: str) -> UserError:
    cached = sorted({f"@{build.hash}:{build.config}" for build in builds})
    found = f"in the cache are {', '.join(cached)}" if cached else "the cache has none of it"
    return UserError(
        f"{spec.text}: {found}, and {why}; expected a revision (a commit) and a config of the "
        "cache, or to be online"
    )


def _is_offline(datasets: types.ModuleType) -> bool:
    stated = (os.environ.get(key, "") for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    return bool(datasets.config.HF_HUB_OFFLINE) or any(v.lower() in _TRUE for v in stated)


def _cached(datasets: types.ModuleType, spec: _HubSpec) -> list[_Build]:
    """The builds of a dataset in the cache. The library writes NAME in lower case with "_"."""
    plain = spec.name.replace("_", "").lower()
    found = []
    for folder in pathlib.Path(datasets.config.HF_DATASETS_CACHE).glob(f"{spec.owner}___*"):
        if folder.name.removeprefix(f"{spec.owner}___").replace("_", "").lower() == plain:
            infos = folder.glob("*/*/*/dataset_info.json")
            found += [_Build(p.parent) for p in infos if _COMMIT.fullmatch(p.parent.name)]
    return sorted(found, key=lambda build: build.path)


def _prepared(datasets: types.ModuleType, spec: _HubSpec, folder: pathlib.Path) -> dict[str, Any]:
    """The splits in a folder of the cache."""
    try:
        info = datasets.DatasetInfo.from_directory(str(folder))
        splits = {}
        for split, known in info.splits.items():
            form = re.compile(rf".*-{re.escape(split)}(-\d+-of-\d+)?\.arrow")
            files = sorted(p for p in folder.iterdir() if form.fullmatch(p.name))
            parts = [datasets.Dataset.from_file(str(file), info=info) for file in files]
            splits[split] = datasets.concatenate_datasets(parts)
            if len(splits[split]) != known.num_examples:
                raise ValueError(
                    f"split {split} has {len(splits[split])} rows, expected {known.num_examples}"
                )
    except Exception as error:  # its parsers raise any type on damaged files
        raise UserError(
            f"{spec.text}: its copy in the cache, {folder}, is damaged ({type(error).__name__}: "
            f"{str(error)[:200]}); remove the folder to download it again"
        ) from error
    return splits


def _downloaded(datasets: types.ModuleType, spec: _HubSpec, builds: Sequence[_Build]) -> Splits:
    repository = f"{spec.owner}/{spec.name}"
    if os.path.exists(repository):
        raise UserError(
            f"{spec.text}: there is a file or folder {repository} here, which the library would "
            "take; expected another working folder, or the folder as SPEC"
        )
    try:
        builder = datasets.load_dataset_builder(repository, spec.config, revision=spec.revision)
        # If the Hub cannot be reached, the library takes any revision that is in the cache.
        if ".cache." in type(builder).__module__:
            raise _not_cached(spec, builds, "the Hub cannot be reached")
        builder.download_and_prepare()
        found = builder.as_dataset()
    except UserError:
        raise
    except Exception as error:  # of the network, of the Hub and of the files
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{spec.text}: cannot be loaded from the Hugging Face Hub ({type(error).__name__}: "
            f"{reason})"
        ) from error
    return Splits(dict(found), (f"revision {builder.hash}, from the Hub",))
