"""Loads the dataset that a SPEC names, see `spec`; its images alone; its fingerprint."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bloodjax.data import bit_depth, names
from bloodjax.data import fingerprint as fingerprint_lib
from bloodjax.data.dataset import Dataset, unlabelled
from bloodjax.data.formats import array_record, folders, hf_dataset, image_files, npz, table
from bloodjax.data.formats import groups as groups_lib
from bloodjax.data.formats.archive import keep_open
from bloodjax.data.options import AUTO, DEFAULTS, MULTI_LABEL, ReadOptions
from bloodjax.data.reading import Reading
from bloodjax.data.spec import Kind, Source, is_called_synthetic, resolve
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.io.host_memory import host_memory

# Kinds whose images are files that annotations name, and what reads them.
_OF_FILES = {Kind.TABLE: table, Kind.HF_DATASET: hf_dataset}


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
    source = resolve(spec)
    dataset = _read(
        source, image_size, options, class_names, positional=positional, seed=seed, lazy=lazy
    )
    reading = dataclasses.replace(dataset.reading, spec=spec)
    if source.kind != Kind.SYNTHETIC and is_called_synthetic(spec):
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


def _read(
    source: Source,
    size: int,
    options: ReadOptions,
    class_names: Sequence[str],
    *,
    positional: bool,
    seed: int,
    lazy: bool,
) -> Dataset:
    match source.kind:
        case Kind.SYNTHETIC:
            _check_count(source.count, size)
            dataset = render.render_dataset(source.count, size, seed=seed)
            return dataset.with_reading(Reading(layout="rendered cells"))
        case Kind.TABLE | Kind.HF_DATASET:
            read = _OF_FILES[source.kind].read_dataset
            return read(source.where, size, options, class_names, positional=positional, lazy=lazy)
        case Kind.NPZ:
            return npz.read_dataset(source.path, size, class_names, options, positional=positional)
        case Kind.SHARDS:
            return array_record.read_dataset(source.path, size, options)
        case _:
            return folders.read_dataset(source.path, size, options, class_names, lazy=lazy)


def _check_count(count: int, size: int) -> None:
    if count < len(render.CLASSES):
        raise UserError(
            f"synthetic:{count}: expected {len(render.CLASSES)} images or more, one of each class"
        )
    needed, there = count * size**2 * 3, host_memory()
    if needed > there:
        raise UserError(
            f"synthetic:{count}: needs {needed / 2**30:,.0f} GiB of memory, expected at most "
            f"{there / 2**30:,.0f} GiB"
        )


def on_common_scale(
    datasets: Mapping[str, Dataset], load_again: Callable[[str, str], Dataset]
) -> dict[str, Dataset]:
    """The images of several sources with one scale of their values, see `ReadOptions.bits`.

    An image has the same pixels in two sources only then.

    Args:
      datasets: Images by name.
      load_again: Loads those of a name with another scale. It is rare that scales differ, so
        reading twice is cheap.

    Raises:
      UserError: Some have integers of more than 8 bits and others have floats.
    """
    try:
        scale = bit_depth.widest([dataset.reading.tally.scale for dataset in datasets.values()])
    except ValueError as error:
        specs = dict.fromkeys(dataset.reading.spec for dataset in datasets.values())
        raise UserError(f"{', '.join(specs)}: {error}") from error
    return {
        name: dataset if dataset.reading.tally.scale in ("", scale) else load_again(name, scale)
        for name, dataset in datasets.items()
    }


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
    source = resolve(path, may_be_image=True)
    match source.kind:
        case Kind.SYNTHETIC | Kind.SHARDS:
            auto = dataclasses.replace(options, task=AUTO)
            dataset = _read(source, image_size, auto, (), positional=True, seed=seed, lazy=False)
            reading = dataclasses.replace(dataset.reading, spec=path)
            return unlabelled(dataset.images, dataset.names, reading, dataset.groups)
        case Kind.TABLE | Kind.HF_DATASET:
            return _OF_FILES[source.kind].read_images(source.where, image_size, options)
        case Kind.IMAGE:
            found = image_files.read_file(source.path, image_size, options)
            reading = Reading(path, "one image").with_tally(found.tally, options)
            return unlabelled(found.images, (source.path.name,), reading)
        case Kind.NPZ:
            images, shown, tally = npz.read_images(source.path, image_size, options)
            reading = Reading(path, "npz of images").with_tally(tally, options)
            return unlabelled(images, shown, reading, npz.read_groups(source.path, shown))
        case _:
            return _images_of_folder(path, source.path, image_size, options)


def _images_of_folder(spec: str, path: pathlib.Path, size: int, options: ReadOptions) -> Dataset:
    archive = keep_open(path)
    found, others = image_files.find(path, archive)
    images, readable, tally = image_files.read(path, archive, found, size, options)
    if not readable.any():
        raise UserError(f"{spec}: contains no readable images")
    tables = groups_lib.read(path, archive, found)
    for line in tables.warnings:
        _log.warning(line)
    groups = tuple(tables.group_of.get(name, "") for name in found)
    details = (*archive.details, *tables.details)
    reading = Reading(spec, "all images at any depth", details)
    reading = reading.with_tally(tally, options).with_left_out(*archive.left_out, *others)
    return unlabelled(images, found, reading, groups).only_readable(readable)


def file_reader(spec: str, options: ReadOptions = DEFAULTS) -> Callable[[str], bytes] | None:
    """A function from the name of an image to its file; None for other sources than these.

    They are tables, and datasets of Hugging Face's library.

    Raises:
      UserError: The source is missing or damaged.
    """
    source = resolve(spec, may_be_image=True)
    reads = _OF_FILES.get(source.kind)
    return reads.file_reader(source.where, options) if reads else None


def native_size(spec: str) -> int | None:
    """Height and width in pixels of the images of a source that stores pixels; None for files.

    Raises:
      UserError: The source is missing or damaged, or its images are not square.
    """
    source = resolve(spec)
    if source.kind == Kind.SHARDS:
        return array_record.native_size(source.path)
    return npz.native_size(source.path) if source.kind == Kind.NPZ else None


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
    return _fingerprint(resolve(spec), options)


def _fingerprint(source: Source, options: ReadOptions) -> str:
    match source.kind:
        case Kind.SYNTHETIC:
            return f"synthetic:{source.count}"
        case Kind.TABLE | Kind.HF_DATASET:
            return _OF_FILES[source.kind].fingerprint(source.where, options)
        case Kind.SHARDS:
            return array_record.fingerprint(source.path)
        case Kind.NPZ:
            return fingerprint_lib.of_npz(source.path)
        case _:
            return fingerprint_lib.of_archive(source.path)


def has_fingerprint(spec: str, known: str, *, options: ReadOptions = DEFAULTS) -> bool:
    """Whether a source has the fingerprint `known`, of this version or of an earlier one.

    Args:
      spec: The SPEC of the source.
      known: A fingerprint.
      options: As for `fingerprint`.

    Raises:
      UserError: The source is missing or damaged.
    """
    source = resolve(spec)
    if source.kind not in (Kind.SHARDS, Kind.FOLDER) or not fingerprint_lib.is_earlier(known):
        return _fingerprint(source, options) == known
    if source.kind == Kind.SHARDS:
        return array_record.earlier_fingerprint(source.path) == known
    return fingerprint_lib.earlier_of_archive(source.path) == known


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
    named = set(name_of.values())
    lacking = [name for name in class_names if name not in named]
    if dataset.is_multi_label and lacking:
        raise UserError(
            f"{dataset.reading.spec}: has no column of the label{'s' if len(lacking) > 1 else ''} "
            f"{names.shown(lacking)}, expected 0 or 1 for each of {names.shown(class_names)}"
        )
    position = {name: i for i, name in enumerate(class_names)}
    new_label = np.array([position[name_of[name]] for name in dataset.classes], np.int32)
    if dataset.is_multi_label:
        labels = np.zeros((len(dataset), len(class_names)), np.int32)
        for column, label in enumerate(new_label):  # two columns may be one label
            labels[:, label] |= dataset.labels[:, column]
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
