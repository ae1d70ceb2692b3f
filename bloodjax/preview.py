"""Draws a sheet of what training will see.

python -m bloodjax.preview --config=configs/convnext_base.py [--config.key=value ...] --out=FILE.png

A row for each class: an image of the training source as it is, then as it comes in as many steps.
"""

from __future__ import annotations

from bloodjax.cli import command

_CONFIG = command.flags.DEFINE_string("config", None, "A Python file with get_config().")
command.flags.DEFINE_string("out", None, "The image's file, .png.")
_COLUMNS = command.flags.DEFINE_integer("columns", 9, "Draws a row.", lower_bound=1, upper_bound=32)


def main(overrides: list[str]) -> None:
    """Runs the command."""
    from bloodjax import config as config_lib
    from bloodjax.cli import console
    from bloodjax.errors import UserError
    from bloodjax.io import files
    from bloodjax.report import sheet

    out = command.local_path("out")
    if out.suffix != ".png":
        raise UserError(f"--out={out}: expected a name that ends in .png")
    config = config_lib.load(_CONFIG.value, overrides)
    files.make_folder(out.parent)
    files.atomic_write(out, sheet.draw(config, _COLUMNS.value))
    console.log_info(f"written to {out}")


if __name__ == "__main__":
    command.run(main, required=("config", "out"), takes_config=True)
