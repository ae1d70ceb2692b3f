"""Writes a dataset as ArrayRecord shards, from which training reads images one by one.

python -m bloodjax.pack --data=SPEC --out=DIR [--image_size=96] [--shards=16]

DIR is then a SPEC. Without `--image_size` the encoded images are kept, and training on DIR gives
the same results as training on SPEC, at any size. With it decoded images of that size are stored,
which are read several times faster by training at that size.
"""

from __future__ import annotations

from bloodjax.cli import command

_DATA = command.flags.DEFINE_string("data", None, "SPEC: The labelled images.")
command.flags.DEFINE_string("out", None, "DIR: New or empty folder for the shards.")
_SIZE = command.flags.DEFINE_integer(
    "image_size", None, "PIXELS: Side of the stored images. By default as they are.", 16, 2048
)
_SHARDS = command.flags.DEFINE_integer(
    "shards", None, "N: Files per split. By default one for every 8,192 images.", 1, 99_999
)
_BAD = command.flags.DEFINE_enum(
    "bad_images",
    "fail",
    ["fail", "skip"],
    "What to do about an unreadable image.",
)
_BITS = command.flags.DEFINE_enum(
    "bits",
    "auto",
    ["auto", "8", "10", "12", "14", "16"],
    "Scale of values of more than 8 bits.",
)
_FIT = command.flags.DEFINE_string(
    "fit",
    "crop",
    "NAME: How images become squares: crop, pad, squash, 240px.",
)
_CLASSES = command.flags.DEFINE_string(
    "classes", "", "A,B,C: Class names in label order, for a file without its own."
)
_LAYOUT = command.flags.DEFINE_string(
    "layout",
    "auto",
    "LEVELS: What the folders mean, such as class/group.",
)
_SEED = command.flags.DEFINE_integer("seed", 0, "N: Seed of synthetic images.", 0, 2**31 - 1)
_COLUMNS = command.flags.DEFINE_string("columns", "", command.COLUMNS)
_IMAGES = command.flags.DEFINE_string("images", "", command.IMAGES)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.cli import console
    from bloodjax.config import parsed
    from bloodjax.data import packing, spec, statement
    from bloodjax.data.formats import columns, layout
    from bloodjax.data.options import ReadOptions

    size, out = _SIZE.value, command.local_path("out")
    spec.check_images([_DATA.value], _IMAGES.value)
    dataset = packing.load_source(
        _DATA.value,
        size,
        options=ReadOptions(
            _BAD.value,
            _BITS.value,
            _FIT.value,
            layout.check(_LAYOUT.value, "--layout"),
            columns.check(_COLUMNS.value, "--columns"),
            _IMAGES.value,
        ),
        class_names=parsed.parse_names(_CLASSES.value),
        seed=_SEED.value,
    )
    for line in statement.lines({_DATA.value: dataset}):
        console.log_info(line)
    with console.ProgressBar("packed", len(dataset), 0) as bar:
        packing.pack(
            dataset,
            out,
            as_pixels=size is not None,
            fit=_FIT.value,
            shards=_SHARDS.value,
            progress=bar.advance,
        )
    console.log_info(f"{console.counted(len(dataset), 'image')} packed; --data={out} reads them")


if __name__ == "__main__":
    command.run(
        main, name="pack", required=("data", "out"), example="--data=cells.zip --out=cells_packed"
    )
