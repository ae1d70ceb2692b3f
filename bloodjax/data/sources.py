"""Loads the dataset that a SPEC names.

FILE.npz        a challenge file or a MedMNIST file, distinguished by the names of their arrays
FOLDER, X.zip   <class>/<image> or <split>/<class>/<image>
FILE.csv        a table of images and labels, also .tsv, .parquet and .xlsx
FOLDER          ArrayRecord shards, as bloodjax.pack writes them
tfds:NAME[:VERSION]   a dataset that tensorflow_datasets has built on this machine
hf-dataset:OWNER/NAME[@REVISION][:CONFIG]   a dataset of the Hugging Face Hub, from its cache or
                else downloaded; also a folder that its library has saved
synthetic[:N]   N rendered images of blood cells, by default 2,400; a file or folder that is called
                so is meant if it is there
gs://, s3://    any of the files and folders above, in a bucket (`io.remote`)
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bloodjax.data import fingerprint as fingerprint_lib
from bloodjax.data import names
from bloodjax.data.dataset import Dataset, unlabelled
from bloodjax.data.formats import array_record, folders, hf_dataset, image_files, npz, table
from bloodjax.data.formats import groups as groups_lib
from bloodjax.data.formats.archive import keep_open
from bloodjax.data.options import AUTO, DEFAULTS, MULTI_LABEL, ReadOptions
from bloodjax.data.reading import Reading
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.io import remote

DEFAULT_SYNTHETIC = 2400
_SYNTHETIC = "synthetic"
_TFDS = "tfds:"


def load(
    spec: str,
    image_size: int,
    *,
    options: ReadOptions = DEFAULTS,
    class_names: Sequence[str] = (),
    positional: bool = True,
    seed: int = 0,
    lazy: bool = False,
) -> Dataset:
    """Loads all images of a source, center-cropped and resized to `image_size`.

    Images of shards are always lazy (`lazy.LazyImages`). Images of a folder or zip are lazy if
    they would take more than a quarter of the host's memory.

    Args:
      spec: The SPEC of the source.
      image_size: Height and width of the images in pixels.
      options: How the images are read.
      class_names: Classes in label order, such as those of a trained model. The source may lack
        some of them, and must not contain others. By default the order is the source's own, and
        each class must have an image. Names that differ only in form are the same (`names`).
      positional: Whether the labels of a file that names no classes are positions in
        `class_names`. If not, such a file is an error, unless its labels follow the same order.
      seed: Random seed of synthetic images.
      lazy: Whether images of a folder or zip are always lazy.

    Raises:
      UserError: The source cannot be loaded; the message names it.
    """
    count = synthetic_count(spec)
    if count is not None:
        dataset = render.render_dataset(count, image_size, seed=seed)
        dataset = dataclasses.replace(dataset, reading=Reading(layout="rendered cells"))
    elif is_table(spec):
        dataset = table.read_dataset(
            _table(spec), image_size, options, class_names, positional=positional, lazy=lazy
        )
    elif saved := _saved(spec):
        dataset = hf_dataset.read_dataset(
            saved, image_size, options, class_names, positional=positional, lazy=lazy
        )
    else:
        path = _local_path(spec)
        if _is_npz(path):
            dataset = npz.read_dataset(
                path, image_size, class_names, options, positional=positional
            )
        elif array_record.is_shards(path):
            dataset = array_record.read_dataset(path, image_size, options)
        else:
            dataset = folders.read_dataset(path, image_size, options, class_names, lazy=lazy)
    reading = dataclasses.replace(dataset.reading, spec=spec)
    if count is None and spec.partition(":")[0] == _SYNTHETIC:
        reading = reading.with_details("the folder of this name, no rendered cells")
    dataset = dataclasses.replace(dataset, reading=reading)
    if options.task == MULTI_LABEL and not dataset.is_multi_label:
        raise UserError(
            f"{spec}: has one class for each image, but config.data.task is {MULTI_LABEL}; "
            "expected an npz with 0 or 1 for each label, of shape (N, labels)"
        )
    if class_names:
        return in_label_order(dataset, class_names)
    counts = dataset.class_counts
    empty = [name for name, n in zip(dataset.classes, counts, strict=True) if n == 0]
    if empty:
        raise UserError(
            f"{spec}: no image of {names.shown(empty)}, expected at least one of each class "
            f"({names.shown(dataset.classes)}); config.data.classes or --classes may list others"
        )
    return dataset


def load_images(
    path: str, image_size: int, *, options: ReadOptions = DEFAULTS, seed: int = 0
) -> Dataset:
    """Loads images without labels, to classify them.

    Args:
      path: An image, a folder or zip with images at any depth, an npz with `images`, or any
        other SPEC.
      image_size: Height and width of the images in pixels.
      options: How the images are read.
      seed: Random seed of synthetic images.

    Returns:
      The images, their names and groups; there are no class names, and all labels are 0.

    Raises:
      UserError: The source cannot be loaded; the message names it.
    """
    file = pathlib.Path(os.path.expanduser(remote.local(path)))
    is_shards = path.startswith(_TFDS) or array_record.is_shards(file)
    if is_shards or synthetic_count(path) is not None:
        auto = dataclasses.replace(options, task=AUTO)
        dataset = load(path, image_size, options=auto, seed=seed)
        return unlabelled(dataset.images, dataset.names, dataset.reading, dataset.groups)
    if is_table(path):
        return table.read_images(_table(path), image_size, options)
    if saved := _saved(path):
        return hf_dataset.read_images(saved, image_size, options)
    if file.is_file() and file.suffix.lower() not in (".npz", ".zip"):
        found = image_files.read_file(file, image_size, options)
        reading = Reading(path, "one image").with_tally(found.tally, options)
        return unlabelled(found.images, (file.name,), reading)
    source = _local_path(path)
    if _is_npz(source):
        images, shown, tally = npz.read_images(source, image_size, options)
        reading = Reading(path, "npz of images").with_tally(tally, options)
        return unlabelled(images, shown, reading, npz.read_groups(source, shown))
    archive = keep_open(source)
    shown, others = image_files.find(source, archive)
    images, readable, tally = image_files.read(source, archive, shown, image_size, options)
    if not readable.any():
        raise UserError(f"{path}: contains no readable images")
    tables = groups_lib.read(source, archive, shown)
    groups = tuple(tables.group_of.get(name, "") for name in shown)
    details = (*archive.details, *tables.details)
    reading = Reading(path, "all images at any depth", details)
    reading = reading.with_tally(tally, options).with_left_out(*archive.left_out, *others)
    return unlabelled(images, shown, reading, groups).only_readable(readable)


def file_reader(spec: str, options: ReadOptions = DEFAULTS) -> Callable[[str], bytes] | None:
    """A function from the name of an image to its file; None for other sources than these.

    They are tables, and datasets of Hugging Face's library.

    Raises:
      UserError: The source is missing or damaged.
    """
    if is_table(spec):
        return table.file_reader(_table(spec), options)
    saved = _saved(spec)
    return hf_dataset.file_reader(saved, options) if saved else None


def count_labelled(spec: str, options: ReadOptions = DEFAULTS) -> tuple[dict[str, int], int] | None:
    """Labelled images of each split ("" for none) and number of classes, of a `file_reader` source.

    Raises:
      UserError: The source is missing or damaged.
    """
    if is_table(spec):
        _, found = table.read(_table(spec), options, refuses_missing=False)
    elif saved := _saved(spec):
        found = hf_dataset.read(saved, options)
    else:
        return None
    return dict(collections.Counter(found.splits)), len(found.classes)


def native_size(spec: str) -> int | None:
    """Height and width in pixels of the images of a source that stores pixels; None for files.

    Raises:
      UserError: The source is missing or damaged, or its images are not square.
    """
    if _has_own_files(spec):
        return None
    path = _local_path(spec)
    if array_record.is_shards(path):
        return array_record.native_size(path)
    return npz.native_size(path) if _is_npz(path) else None


def fingerprint(spec: str, *, options: ReadOptions = DEFAULTS) -> str:
    """A short text that changes when the images, their names or their groups change.

    It covers the bytes of all images in a folder or in shards, the checksums that a zip or npz
    stores, and the number of synthetic images. The place of a source does not matter; see
    `bloodjax.data.fingerprint`.

    Args:
      spec: The SPEC of the source.
      options: What the columns of a table mean, and where its images are.

    Raises:
      UserError: The source is missing or damaged.
    """
    count = synthetic_count(spec)
    if count is not None:
        return f"synthetic:{count}"
    if is_table(spec):
        return table.fingerprint(_table(spec), options)
    if saved := _saved(spec):
        return hf_dataset.fingerprint(saved, options)
    path = _local_path(spec)
    if array_record.is_shards(path):
        return array_record.fingerprint(path)
    if _is_npz(path):
        return fingerprint_lib.of_npz(path)
    return fingerprint_lib.of_archive(path)


def has_fingerprint(spec: str, known: str, *, options: ReadOptions = DEFAULTS) -> bool:
    """Whether a source has the fingerprint `known`, of this version or of an earlier one.

    Args:
      spec: The SPEC of the source.
      known: A fingerprint.
      options: As for `fingerprint`.

    Raises:
      UserError: The source is missing or damaged.
    """
    if synthetic_count(spec) is not None or _has_own_files(spec):
        return fingerprint(spec, options=options) == known
    path = _local_path(spec)
    if _is_npz(path) or not fingerprint_lib.is_earlier(known):
        return fingerprint(spec, options=options) == known
    if array_record.is_shards(path):
        return array_record.earlier_fingerprint(path) == known
    return fingerprint_lib.earlier_of_archive(path) == known


def is_table(spec: str) -> bool:
    """Whether a SPEC names a table, by its suffix; a folder or a dataset of the Hub is none."""
    if hf_dataset.is_hub(spec) or not table.has_suffix(spec):
        return False
    return remote.is_remote(spec) or not os.path.isdir(os.path.expanduser(spec))


def _has_own_files(spec: str) -> bool:
    """Whether a source is a table or a dataset of Hugging Face's library."""
    return is_table(spec) or bool(_saved(spec))


def _saved(spec: str) -> str:
    """A dataset of the Hub, or the folder that its library has saved; "" for any other source."""
    if hf_dataset.is_hub(spec):
        return spec
    if _is_without_files(spec):
        return ""
    path = pathlib.Path(os.path.expanduser(remote.local(spec)))
    return str(path) if hf_dataset.is_saved(path) else ""


def _is_without_files(spec: str) -> bool:
    return spec.startswith(_TFDS) or synthetic_count(spec) is not None


def _table(spec: str) -> str:
    """The path of a table; a URL as it is, because its images are beside it."""
    return spec if remote.is_remote(spec) else str(_local_path(spec))


def _is_npz(path: pathlib.Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".npz"


def synthetic_count(spec: str) -> int | None:
    """N of `synthetic[:N]`; None for any other SPEC, and if a file or folder has this name."""
    kind, colon, count = spec.partition(":")
    if kind != _SYNTHETIC or os.path.lexists(spec):
        return None
    if not colon:
        return DEFAULT_SYNTHETIC
    if not re.fullmatch("0*[1-9][0-9]*", count):
        raise UserError(f"{spec}: {count!r} images, expected synthetic:N with N of 1 or more")
    return int(count)


def _local_path(spec: str) -> pathlib.Path:
    if spec.startswith(_TFDS):
        from bloodjax.data.formats import tfds  # slow to import, and most runs do not need it

        return tfds.locate(spec)
    # pathlib's expanduser raises without a home.
    path = pathlib.Path(os.path.expanduser(remote.local(spec)))
    if not path.exists():
        path = _in_other_form(spec, path)
    is_file = path.suffix.lower() in (".npz", ".zip") or table.has_suffix(path.name)
    if not path.is_dir() and not is_file:
        raise UserError(
            f"{spec}: neither npz nor zip, expected FILE.npz, a .zip, a folder or a table "
            f"({', '.join(table.SUFFIXES)})"
        )
    return path


def _in_other_form(spec: str, path: pathlib.Path) -> pathlib.Path:
    """The one file or folder whose name differs from a missing one's in its Unicode form only.

    Raises:
      UserError: There is none; the message names one that differs in case or blanks.
    """
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    composed = unicodedata.normalize("NFC", path.name)
    same = [name for name in beside if unicodedata.normalize("NFC", name) == composed]
    if len(same) == 1:
        return path.with_name(same[0])
    alike = [name for name in beside if names.form(name) == names.form(path.name)]
    hint = f"; there is {path.with_name(alike[0])}" if alike else ""
    raise UserError(f"{spec}: no such file or folder{hint}")


def in_label_order(dataset: Dataset, class_names: Sequence[str]) -> Dataset:
    """The images with labels that follow other class names, of which the source may lack some.

    Args:
      dataset: The images.
      class_names: Class names in label order. A name that differs only in form is the same.

    Raises:
      UserError: The images have a class that `class_names` does not contain, or can have several
        labels and lack one of `class_names`: whether they have this label is unknown then.
    """
    name_of = names.match(dataset.classes, class_names)
    unknown = [name for name in dataset.classes if name not in name_of]
    if unknown:
        raise UserError(
            f"{dataset.reading.spec}: contains the class{'es' if len(unknown) > 1 else ''} "
            f"{names.shown(unknown)}, expected only {names.shown(class_names)}"
        )
    if dataset.is_multi_label and len(dataset.classes) < len(class_names):
        named = set(name_of.values())
        lacking = [name for name in class_names if name not in named]
        raise UserError(
            f"{dataset.reading.spec}: has no column of the label{'s' if len(lacking) > 1 else ''} "
            f"{names.shown(lacking)}, expected 0 or 1 for each of {names.shown(class_names)}"
        )
    position = {name: i for i, name in enumerate(class_names)}
    new_label = np.array([position[name_of[name]] for name in dataset.classes], np.int32)
    if dataset.is_multi_label:
        labels = np.zeros((len(dataset), len(class_names)), np.int32)
        labels[:, new_label] = dataset.labels
    else:
        labels = new_label[dataset.labels]
    reading = dataset.reading.with_details(*names.taken_as(name_of))
    return dataclasses.replace(dataset, labels=labels, classes=tuple(class_names), reading=reading)


def with_common_names(datasets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Sources of which each class has the name that it has in the first of them with it.

    Args:
      datasets: The sources by key. Their labels, and the order of their classes, stay.
    """
    known: list[str] = []
    common = {}
    for key, dataset in datasets.items():
        name_of = names.match(dataset.classes, known)
        classes = tuple(name_of.get(name, name) for name in dataset.classes)
        if len(set(classes)) < len(classes):  # two names of one form, kept apart on purpose
            classes = dataset.classes
        renamed = names.taken_as(dict(zip(dataset.classes, classes, strict=True)))
        reading = dataset.reading.with_details(*renamed)
        common[key] = dataclasses.replace(dataset, classes=classes, reading=reading)
        known += [name for name in classes if name not in known]
    return common
