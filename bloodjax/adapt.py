"""Adapts a trained run to another laboratory, from its images and, if there are any, a few labels.

python -m bloodjax.adapt --workdir=DIR --data=PATH_OR_SPEC [--labelled=SPEC] [--classes=a,b,c]
    --out=DIR2
"""

from __future__ import annotations

from bloodjax.cli import command

command.flags.DEFINE_string("workdir", None, "DIR: Folder of the run.")
_DATA = command.flags.DEFINE_string(
    "data",
    None,
    "PATH_OR_SPEC: Images of the site, as for predict --input. Labels are not looked at.",
)
command.flags.DEFINE_string(
    "out", None, "DIR2: New folder: the workdir of the adapted run, and a page about the site."
)
_LABELLED = command.flags.DEFINE_string(
    "labelled", None, "SPEC: A few labelled images of the site, none of them in --data."
)
_CLASSES = command.flags.DEFINE_string(
    "classes", None, "A,B,C: The classes that occur at the site. By default all of the run's."
)
_COLUMNS = command.flags.DEFINE_string("columns", None, command.COLUMNS)
_IMAGES = command.flags.DEFINE_string("images", None, command.IMAGES)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.adaptation import adapter
    from bloodjax.cli import compilation_cache

    workdir, out = command.local_path("workdir"), command.local_path("out")
    compilation_cache.keep(workdir)
    adapter.adapt(
        workdir,
        _DATA.value,
        out,
        labelled_data=_LABELLED.value,
        classes=_CLASSES.value,
        columns=_COLUMNS.value,
        images=_IMAGES.value,
    )


if __name__ == "__main__":
    command.run(
        main,
        name="adapt",
        required=("workdir", "data", "out"),
        example="--workdir=runs/first --data=slides/ --classes=lymphocyte,monocyte --out=runs/here",
    )
