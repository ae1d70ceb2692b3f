"""Packs a data set into ArrayRecord shards, from which training reads it image by image.

python -m bloodjax.pack --data=SPEC --out=DIR [--image_size=96] [--shards=16]

DIR is a SPEC then. Without `--image_size` images are kept as they are, and training on DIR is
training on SPEC, at any size. With it they are kept as pixels of that size, which are read several
times faster: for training at that size.
"""

from __future__ import annotations

from bloodjax.cli import command

_DATA = command.flags.DEFINE_string("data", None, "A SPEC.")
command.flags.DEFINE_string("out", None, "A new or empty folder for the shards.")
_SIZE = command.flags.DEFINE_integer(
    "image_size", None, "Side in pixels at which to keep them; by default as they are.", 16, 2048
)
_SHARDS = command.flags.DEFINE_integer(
    "shards", None, "Files for each split; by default one for every 8,192 images.", 1, 99_999
)
_BAD = command.flags.DEFINE_enum(
    "bad_images", "fail", ["fail", "skip"], "What to do about an unreadable image in a folder."
)
_CLASSES = command.flags.DEFINE_list(
    "classes", [], "Class names in label order, for a file that does not name its own."
)
_SEED = command.flags.DEFINE_integer("seed", 0, "Of rendered cells.", 0, 2**31 - 1)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.cli import console
    from bloodjax.data import packing

    size, out = _SIZE.value, command.local_path("out")
    dataset = packing.read(
        _DATA.value,
        size,
        bad_images=_BAD.value,
        class_names=_CLASSES.value,
        seed=_SEED.value,
    )
    with console.ProgressBar("packed", len(dataset), 0) as bar:
        packing.pack(
            dataset, out, as_pixels=size is not None, shards=_SHARDS.value, progress=bar.advance
        )
    console.log_info(f"{len(dataset):,} images packed; --data={out} reads them")


if __name__ == "__main__":
    command.run(main, required=("data", "out"))
