"""Draws a sheet of what training will see.

python -m bloodjax.augment --config=configs/convnext_base.py [--config.key=value ...] --out=FILE.png

A row for each class: a picture of the training source as it is, then as it comes in as many steps.
"""

from __future__ import annotations

from bloodjax import cli

_CONFIG = cli.flags.DEFINE_string("config", None, "A Python file with get_config().")
cli.flags.DEFINE_string("out", None, "The picture's file, .png.")
_COLUMNS = cli.flags.DEFINE_integer("columns", 9, "Draws a row.", lower_bound=1, upper_bound=32)


def main(overrides: list[str]) -> None:
    """Runs the command."""
    from bloodjax import files, logs, settings
    from bloodjax.errors import UserError
    from bloodjax.report import sheet

    out = cli.local_path("out")
    if out.suffix != ".png":
        raise UserError(f"--out={out}: expected a name that ends in .png")
    config = settings.load(_CONFIG.value, overrides)
    files.make_folder(out.parent)
    files.write_whole(out, sheet.draw(config, _COLUMNS.value))
    logs.say(f"written to {out}")


if __name__ == "__main__":
    cli.run(main, required=("config", "out"), takes_config=True)
