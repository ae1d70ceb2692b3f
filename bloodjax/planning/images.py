"""How many images and classes a run would have, found without decoding an image."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib

from bloodjax.config import Config, read_options, split_source
from bloodjax.data import names as names_lib
from bloodjax.data import sources
from bloodjax.data.formats import groups, hf_dataset, npz, table
from bloodjax.data.formats import layout as layout_lib
from bloodjax.data.formats.archive import open_archive
from bloodjax.data.options import ReadOptions
from bloodjax.data.spec import Kind, resolve
from bloodjax.data.splits import SOURCE_NAMES
from bloodjax.errors import UserError
from bloodjax.training.input_pipeline import DEFAULT_FRACTION

# Images and classes of the cell classification challenge, for a run whose data are not here.
DEFAULT_IMAGES, DEFAULT_CLASSES = 11_959, 8


@dataclasses.dataclass(frozen=True)
class ImageCounts:
    """Number of images and classes of a run.

    Attributes:
      train: Images of the training split.
      validation: Images that each epoch is validated on.
      test: Images of the test split.
      classes: Number of classes.
      origin: Where the numbers are from, in a sentence.
    """

    train: int
    validation: int
    test: int
    classes: int
    origin: str


def count(config: Config, images: int | None = None, classes: int | None = None) -> ImageCounts:
    """Counts the images of a run's splits, before the audit removes any.

    Args:
      config: Config of the run.
      images: Images of `config.data.train`, with the splits that come from it; by default those of
        the source, or the challenge's 11,959 if it is not here.
      classes: Number of classes; by default the source's, or 8.

    Raises:
      UserError: A source cannot be read, or no image is left to train on.
    """
    spec, options = config.data.train, read_options(config)
    known = (
        _source(spec, options, tuple(config.data.classes))
        if _is_here(spec) and not images
        else None
    )
    if known:
        own, found = known
        origin = f"{sum(own.values()):,} images in {spec}, before the audit removes any"
    else:
        own = {"": images or DEFAULT_IMAGES}
        found = len(config.data.classes) or DEFAULT_CLASSES
        why = "--images" if images else f"a guess: {spec or 'config.data.train'} is not here"
        origin = f"{own['']:,} images ({why})"
    counts, fractions = {}, {}
    for name, in_source in SOURCE_NAMES.items():
        source = split_source(config, name)
        if source.spec is not None:
            each = _source(source.spec, options, ())[0] if _is_here(source.spec) else {}
            # A source with such a split of its own gives this one, as in a run.
            takes_own = len(each) > 1 and in_source in each
            counts[name] = each[in_source] if takes_own else sum(each.values())
        elif source.is_auto and in_source in own:
            counts[name] = own[in_source]
        else:
            fractions[name] = DEFAULT_FRACTION if source.is_auto else source.fraction
    rest = own["train"] if "train" in own else sum(own.values())
    counts |= {name: round(fraction * rest) for name, fraction in fractions.items()}
    train = rest - sum(counts[name] for name in fractions)
    if train < 1:
        raise UserError("config.data.validation and config.data.test leave no image to train on")
    return ImageCounts(train, counts["validation"], counts["test"], classes or found, origin)


def _is_here(spec: str) -> bool:
    if spec.partition(":")[0] in ("synthetic", "tfds"):
        return True
    return bool(spec) and os.path.exists(os.path.expanduser(spec))


def _source(spec: str, options: ReadOptions, names: tuple[str, ...]) -> tuple[dict[str, int], int]:
    """Images of each of a source's own splits ("" without splits), and the number of classes."""
    source = resolve(spec)
    match source.kind:
        case Kind.SYNTHETIC:
            return {"": source.count}, len(npz.BLOOD_CELLS)
        case Kind.TABLE:
            _, found = table.read(source.where, options, refuses_missing=False)
        case Kind.HF_DATASET:
            found = hf_dataset.read(source.where, options)
        case Kind.SHARDS:
            found = sources.load(spec, 96)  # reads labels only; the images stay lazy
        case Kind.NPZ:
            counts, classes = npz.count_labels(source.path, names)
            return counts, len(classes)
        case _:
            return _listed(source.path, options.layout)
    return dict(collections.Counter(found.splits)), len(found.classes)


def _listed(path: pathlib.Path, layout: str) -> tuple[dict[str, int], int]:
    with open_archive(path) as archive:
        tables = groups.tables(archive.files)
        found = layout_lib.find(path, archive.files, archive.folders, layout, tables)
    if not found.names:
        raise UserError(f"{path}: contains no images in folders of classes")
    return dict(collections.Counter(found.splits)), len({names_lib.form(n) for n in found.classes})
