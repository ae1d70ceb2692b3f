"""Datasets of the library `datasets` of Hugging Face: of the Hub, or saved to a folder.

`hf-dataset:OWNER/NAME[@REVISION][:CONFIG]` is read from the library's cache if it is there, and
else downloaded. A folder that `save_to_disk` has written is a SPEC by itself. The images stay
encoded in Arrow files and are decoded by `data.images`. The only module that imports `datasets`,
from the extra `hf-datasets`; its versions from 4 on execute no code of a dataset.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from bloodjax.data import names as names_lib
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import columns as columns_lib
from bloodjax.data.formats import groups, labels
from bloodjax.data.formats.annotations import Annotations
from bloodjax.data.formats.archive import Archive, read_file
from bloodjax.data.formats.columns import GROUP, LABEL, PATH, WEIGHT
from bloodjax.data.formats.layout import SPLITS
from bloodjax.data.options import DEFAULTS, ReadOptions
from bloodjax.errors import UserError

PREFIX = "hf-dataset:"
_SPEC = re.compile(r"(\w[\w.-]*)/(\w[\w.-]*)(?:@([\w./-]+))?(?::([\w .+-]+))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{7,40}")
_LAYOUT = "dataset of Hugging Face"
_TRUE = ("1", "true", "yes", "on")
# Files by which a folder that `save_to_disk` has written is known: of one split, or of several.
_OF_SPLIT, _OF_SPLITS = ("state.json", "dataset_info.json"), "dataset_dict.json"


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of all splits, one after another.

    Attributes:
      where: The SPEC, for messages.
      splits: Name of each split -> its `datasets.Dataset`.
      names: Unique name of each row's image.
      columns: Kind (`columns.KINDS`) -> the feature of that kind; a missing kind has none.
      details: Facts for `Reading.details`.
    """

    where: str
    splits: Mapping[str, Any]
    names: tuple[str, ...]
    columns: Mapping[str, str]
    details: tuple[str, ...]

    def values(self, kind: str) -> list:
        """The values of the feature of a kind, of all rows."""
        column = self.columns[kind]
        return [
            value
            for rows in self.splits.values()
            for value in rows.select_columns(column)[:][column]
        ]

    def split_of(self) -> list[str]:
        """The split of each row."""
        return [
            SPLITS.get(name.lower(), name)
            for name, rows in self.splits.items()
            for _ in range(len(rows))
        ]

    def archive(self) -> Archive:
        """The encoded images by name."""
        library, column = _library(self.where), self.columns[PATH]
        undecoded = [
            rows.select_columns(column).cast_column(column, library.Image(decode=False))
            for rows in self.splits.values()
        ]
        starts = np.cumsum([0, *map(len, undecoded)]).tolist()
        number = {name: i for i, name in enumerate(self.names)}

        def read(name: str) -> bytes:
            i = number[name]
            split = int(np.searchsorted(starts, i, side="right")) - 1
            return _file(undecoded[split][i - starts[split]][column])

        return Archive(self.names, frozenset(), read)


def is_hub(spec: str) -> bool:
    """Whether a SPEC names a dataset of the Hub."""
    return spec.startswith(PREFIX)


def is_saved(path: pathlib.Path) -> bool:
    """Whether `save_to_disk` has written a folder."""
    return (path / _OF_SPLITS).is_file() or all((path / name).is_file() for name in _OF_SPLIT)


def read_dataset(
    spec: str,
    size: int,
    options: ReadOptions = DEFAULTS,
    class_names: Sequence[str] = (),
    *,
    positional: bool = True,
    lazy: bool = False,
) -> Dataset:
    """Reads the labelled images of a dataset. Rows without a label are left out.

    Args:
      spec: A dataset of the Hub, or a folder that `save_to_disk` has written.
      size: Height and width of the images in pixels.
      options: How the images are read; `columns` states features that cannot be found.
      class_names: Names of classes in label order, for labels without names of their own.
      positional: Whether such labels may be positions in `class_names`.
      lazy: Whether the images are lazy even if they fit in memory.

    Raises:
      UserError: The dataset is not there, or it has no image or no label that can be found.
    """
    rows = _open(spec, options)
    found = _annotations(rows, class_names, positional=positional).labelled()
    return found.read(spec, _LAYOUT, rows.archive(), size, options, lazy=lazy)


def read_images(spec: str, size: int, options: ReadOptions = DEFAULTS) -> Dataset:
    """Reads the images of a dataset; it needs no labels.

    Raises:
      UserError: As for `read_dataset`.
    """
    rows = _open(spec, options, needs_labels=False)
    group_of, facts = _groups(rows)
    found = Annotations.without_labels(rows.names, group_of, (*rows.details, *facts))
    return found.read(spec, _LAYOUT, rows.archive(), size, options)


def file_reader(spec: str, options: ReadOptions = DEFAULTS) -> Callable[[str], bytes]:
    """A function from the name of an image of a dataset to its file.

    Raises:
      UserError: As for `read_dataset`.
    """
    return _open(spec, options, needs_labels=False).archive().read


def read(spec: str, options: ReadOptions = DEFAULTS) -> Annotations:
    """What a dataset states of its labelled images, without reading them.

    Raises:
      UserError: As for `read_dataset`.
    """
    return _annotations(_open(spec, options)).labelled()


def fingerprint(spec: str, options: ReadOptions = DEFAULTS) -> str:
    """Fingerprint of a dataset: name, label, split, group, weight and bytes of each image.

    Raises:
      UserError: As for `read_dataset`.
    """
    rows = _open(spec, options)
    return _annotations(rows).fingerprint(spec, rows.archive().read)


def _library(spec: str):
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


def _open(spec: str, options: ReadOptions, *, needs_labels: bool = True) -> _Rows:
    if is_hub(spec):
        splits, details = _of_hub(spec)
    else:
        splits, details = _saved(spec), ()
    splits = {name: rows for name, rows in splits.items() if len(rows)}
    if not splits:
        raise UserError(f"{spec}: has no rows, expected at least one")
    columns = _columns(spec, splits, options.columns, needs_labels=needs_labels)
    _validate(spec, splits, columns)
    shown = ", ".join(f"{kind}={column}" for kind, column in columns.items())
    return _Rows(
        spec, splits, _names(splits, columns[PATH]), columns, (*details, f"columns {shown}")
    )


def _validate(spec: str, splits: Mapping[str, Any], columns: Mapping[str, str]) -> None:
    """Checks the memory layout of Arrow files; reading one that is damaged would end the process.

    Raises:
      UserError: A file is damaged.
    """
    for split, rows in splits.items():
        try:
            rows.select_columns([*columns.values()]).data.validate(full=True)
        except Exception as error:  # of pyarrow, which has no common type
            raise UserError(
                f"{spec}: the Arrow files of split {split or 'train'} are damaged "
                f"({str(error)[:200]})"
            ) from error


def _saved(spec: str) -> dict[str, Any]:
    library = _library(spec)
    try:
        found = library.load_from_disk(os.path.expanduser(spec))
    except Exception as error:  # its parsers raise any type on damaged files
        raise UserError(
            f"{spec}: cannot be read as a dataset that save_to_disk has written "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if isinstance(found, library.Dataset):
        return {"" if found.split is None else str(found.split): found}
    return dict(found)


def _of_hub(spec: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The splits of a dataset of the Hub, and which revision it is."""
    match = _SPEC.fullmatch(spec.removeprefix(PREFIX))
    if not match:
        raise UserError(
            f"{spec}: expected {PREFIX}OWNER/NAME[@REVISION][:CONFIG], such as "
            f"{PREFIX}OWNER/cells@main; a folder that save_to_disk has written is given by its path"
        )
    owner, name, revision, config = match.groups()
    library = _library(spec)
    builds = _cached(library, owner, name)
    fitting = [
        build
        for build in builds
        if build.config == (config or "default")
        and (revision is None or (_COMMIT.fullmatch(revision) and build.hash.startswith(revision)))
    ]
    if fitting:
        newest = max(fitting, key=lambda build: build.path.stat().st_mtime)
        return _prepared(spec, library, newest.path), (f"revision {newest.hash}, from the cache",)
    if _is_offline(library):
        raise _not_cached(spec, builds, "HF_HUB_OFFLINE is set")
    return _downloaded(spec, library, f"{owner}/{name}", revision, config, builds)


def _not_cached(spec: str, builds: Sequence[_Build], why: str) -> UserError:
    cached = sorted({f"@{build.hash}:{build.config}" for build in builds})
    found = f"in the cache are {', '.join(cached)}" if cached else "the cache has none of it"
    return UserError(
        f"{spec}: {found}, and {why}; expected a revision (a commit) and a config of the cache, or "
        "to be online"
    )


def _is_offline(library) -> bool:
    stated = (os.environ.get(key, "") for key in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"))
    return bool(library.config.HF_HUB_OFFLINE) or any(v.lower() in _TRUE for v in stated)


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


def _cached(library, owner: str, name: str) -> list[_Build]:
    """The builds of a dataset in the cache. The library writes NAME in lower case with "_"."""
    plain = name.replace("_", "").lower()
    found = []
    for folder in pathlib.Path(library.config.HF_DATASETS_CACHE).glob(f"{owner}___*"):
        if folder.name.removeprefix(f"{owner}___").replace("_", "").lower() == plain:
            infos = folder.glob("*/*/*/dataset_info.json")
            found += [_Build(p.parent) for p in infos if _COMMIT.fullmatch(p.parent.name)]
    return sorted(found, key=lambda build: build.path)


def _prepared(spec: str, library, folder: pathlib.Path) -> dict[str, Any]:
    """The splits in a folder of the cache."""
    try:
        info = library.DatasetInfo.from_directory(str(folder))
        splits = {}
        for split, known in info.splits.items():
            form = re.compile(rf".*-{re.escape(split)}(-\d+-of-\d+)?\.arrow")
            files = sorted(p for p in folder.iterdir() if form.fullmatch(p.name))
            parts = [library.Dataset.from_file(str(file), info=info) for file in files]
            splits[split] = library.concatenate_datasets(parts)
            if len(splits[split]) != known.num_examples:
                raise ValueError(
                    f"split {split} has {len(splits[split])} rows, expected {known.num_examples}"
                )
    except Exception as error:  # its parsers raise any type on damaged files
        raise UserError(
            f"{spec}: its copy in the cache, {folder}, is damaged ({type(error).__name__}: "
            f"{str(error)[:200]}); remove the folder to download it again"
        ) from error
    return splits


def _downloaded(
    spec: str,
    library,
    repository: str,
    revision: str | None,
    config: str | None,
    builds: Sequence[_Build],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    if os.path.exists(repository):
        raise UserError(
            f"{spec}: there is a file or folder {repository} here, which the library would take; "
            "expected another working folder, or the folder as SPEC"
        )
    try:
        builder = library.load_dataset_builder(repository, config, revision=revision)
        # Without the Hub the library takes any copy in the cache, of whatever revision.
        if ".cache." in type(builder).__module__:
            raise _not_cached(spec, builds, "the Hub cannot be reached")
        builder.download_and_prepare()
        found = builder.as_dataset()
    except UserError:
        raise
    except Exception as error:  # of the network, of the Hub and of the files
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{spec}: cannot be loaded from the Hugging Face Hub ({type(error).__name__}: {reason})"
        ) from error
    return dict(found), (f"revision {builder.hash}, from the Hub",)


def _columns(
    spec: str, splits: Mapping[str, Any], text: str, *, needs_labels: bool
) -> dict[str, str]:
    """The feature of each kind that the dataset has."""
    library = _library(spec)
    features = next(iter(splits.values())).features
    stated = columns_lib.parse(text)
    for kind, name in stated.items():
        if name and name not in features and kind != "split":
            raise UserError(
                f"{spec}: has no feature {name} (config.data.columns or --columns), only "
                f"{', '.join(features)}"
            )
    plain = [
        name
        for name, kind in features.items()
        if isinstance(kind, (library.Value, library.ClassLabel))
    ]
    found = {PATH: stated.get(PATH) or _only(spec, features, PATH, library.Image)}
    if not isinstance(features[found[PATH]], library.Image):
        raise UserError(f"{spec}: the feature {found[PATH]} has no images, expected an Image")
    if needs_labels:
        class_labels = [name for name in plain if isinstance(features[name], library.ClassLabel)]
        if not stated.get(LABEL) and not class_labels:
            found[LABEL] = columns_lib.by_name(spec, plain, LABEL)
        label = stated.get(LABEL) or found.get(LABEL)
        found[LABEL] = label or _only(spec, features, LABEL, library.ClassLabel)
        if found[LABEL] not in plain:
            raise UserError(f"{spec}: the feature {found[LABEL]} has no label for each image")
    for kind in (GROUP, WEIGHT) if needs_labels else (GROUP,):
        name = stated[kind] if kind in stated else columns_lib.by_name(spec, plain, kind)
        if name:
            found[kind] = name
    for split, rows in splits.items():
        for name in found.values():
            if name not in rows.features:
                raise UserError(f"{spec}: split {split} has no feature {name}")
    return found


def _only(spec: str, features: Mapping[str, Any], kind: str, type_: type) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, type_)]
    if len(found) == 1:
        return found[0]
    shown = ", ".join(found) if found else f"none among {', '.join(features)}"
    raise UserError(
        f"{spec}: expected one feature of the type {type_.__name__}, found {shown}; name it with "
        f"config.data.columns={kind}=NAME (--columns={kind}=NAME)"
    )


def _names(splits: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """`SPLIT/FILE` if the images have distinct file names, and else `SPLIT/INDEX`."""
    found = []
    for split, rows in splits.items():
        prefix = f"{split}/" if split else ""
        files = _file_names(rows, column)
        distinct = all(files) and len(set(files)) == len(files)
        found.append((prefix, files if distinct else None, len(rows)))
    is_named = all(files for _, files, _ in found)
    return tuple(
        f"{prefix}{files[i] if is_named and files else i}"
        for prefix, files, n in found
        for i in range(n)
    )


def _file_names(rows, column: str) -> list[str]:
    """The last part of the path of each row's image, without reading the images."""
    table = rows.with_format("arrow").select_columns(column)
    paths: list[str] = []
    for batch in table.iter(1000):
        paths += batch.column(column).combine_chunks().field("path").to_pylist()
    return [(path or "").replace("\\", "/").rpartition("/")[2] for path in paths]


def _file(image: Mapping[str, Any] | None) -> bytes:
    """The encoded image of a cell."""
    if image is None:
        raise ValueError("the cell is empty")
    if image.get("bytes") is not None:
        return image["bytes"]
    path = str(image.get("path") or "")
    if not os.path.isabs(path):
        raise ValueError(f"it is at {path or 'no path'}, expected its bytes in the dataset")
    return read_file(pathlib.Path(path))


def _annotations(
    rows: _Rows, class_names: Sequence[str] = (), *, positional: bool = True
) -> Annotations:
    """What the features state of all rows."""
    found, classes, facts = _labels(rows, class_names, positional=positional)
    group_of, group_facts = _groups(rows)
    details = (*rows.details, *facts, *group_facts)
    splits, weights = tuple(rows.split_of()), _weights(rows)
    return Annotations(rows.names, found, classes, splits, tuple(group_of), weights, details)


def _labels(
    rows: _Rows, class_names: Sequence[str], *, positional: bool
) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...], tuple[str, ...]]:
    """Class index of each row, -1 for one without a label; class names, and facts."""
    library, column = _library(rows.where), rows.columns[LABEL]
    feature = next(iter(rows.splits.values())).features[column]
    values = rows.values(LABEL)
    if isinstance(feature, library.ClassLabel):
        classes, facts = tuple(map(names_lib.tidy, feature.names)), ()
        for split, each in rows.splits.items():
            if each.features[column].names != feature.names:
                raise UserError(f"{rows.where}: split {split} has other classes in {column}")
        found = np.array([-1 if value is None else max(value, -1) for value in values], np.int32)
        if found.max() >= len(classes):
            raise UserError(f"{rows.where}: {column} has {found.max()}, a label without a name")
    else:
        found, classes, facts = np.full(len(values), -1, np.int32), (), ()
        known = np.array([_is_label(value) for value in values], bool)
        if known.any():
            array = np.array([v for v, k in zip(values, known, strict=True) if k])
            where = f"{rows.where}: {column}"
            read = labels.read(where, {"row": array}, None, class_names, (), positional=positional)
            found[known], classes, facts = read.by_key["row"], read.classes, read.details
    if (found < 0).all():
        raise UserError(f"{rows.where}: no row has a label in {column}, expected labels")
    return found, classes, facts


def _is_label(value: object) -> bool:
    """Whether a cell of numbers or texts has a label: it is not null, empty, NaN or -1."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    return value != -1 and str(value).strip() != ""


def _groups(rows: _Rows) -> tuple[list[str], tuple[str, ...]]:
    if GROUP not in rows.columns:
        return [""] * len(rows.names), ()
    return groups.of_column(["" if v is None else str(v) for v in rows.values(GROUP)])


def _weights(rows: _Rows) -> Float32[np.ndarray, " n"] | None:
    if WEIGHT not in rows.columns:
        return None
    values = rows.values(WEIGHT)
    for name, value in zip(rows.names, values, strict=True):
        if not isinstance(value, (int, float)) or not 0 <= value <= np.finfo(np.float32).max:
            raise UserError(
                f"{rows.where}: {name}: the weight {value} in {rows.columns[WEIGHT]}, expected a "
                "number of at least 0"
            )
    return np.array(values, np.float32)
