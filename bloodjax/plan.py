"""Plans a run on a machine that is not here: memory, time and cost of its steps, by the compiler.

python -m bloodjax.plan --config=quickstart --device=v5e-8 [--batch_size=N] [--out=FILE.json]
    [--steps=finetune,evaluation] [--search=false] [--images=N] [--classes=N] [--config.key=value]

It compiles the run's own training and prediction steps with the machine's compiler, on this CPU.
"""

from __future__ import annotations

from bloodjax.cli import command

_CONFIG = command.flags.DEFINE_string(
    "config",
    None,
    "NAME: Recipe (bloodjax configs lists them), or a Python file with get_config().",
)
_DEVICE = command.flags.DEFINE_string(
    "device",
    None,
    "MACHINE: v5e-1, -4, -8, -16 or -64, v6e-1, -4 or -8, v4-8, v5p-8, a100, h100, h200 or h200x4.",
)
_BATCH = command.flags.DEFINE_integer(
    "batch_size", None, "N: Images per step over all chips, in place of the config's.", 1
)
_STEPS = command.flags.DEFINE_list(
    "steps",
    [],
    "NAMES: Steps to compile: head, finetune, evaluation, or several. By default all of the run.",
)
_SEARCH = command.flags.DEFINE_boolean(
    "search",
    True,
    "true|false: Search the largest batch that fits, by up to three more compilations.",
)
_IMAGES = command.flags.DEFINE_integer(
    "images", None, "N: Images of config.data.train. By default the source's, if it is here.", 1
)
_CLASSES = command.flags.DEFINE_integer(
    "classes", None, "N: Classes. By default the source's, if it is here.", 2
)
_OUT = command.flags.DEFINE_string(
    "out", None, "FILE.json: File for the plan; a page FILE.html is written beside it."
)


def main(overrides: list[str]) -> None:
    """Runs the command; `overrides` are the config's, as `"key=value"`."""
    from bloodjax.errors import UserError
    from bloodjax.io import files
    from bloodjax.planning import compilers, machines

    machine = machines.machine(_DEVICE.value)
    out = command.local_path("out") if _OUT.value else None
    if out is not None:
        if out.suffix != ".json":
            raise UserError(f"--out={out}: expected a file name that ends in .json")
        files.check_file(out)  # before compiling, which takes minutes
    compilers.prepare(machine)

    from bloodjax import config as config_lib

    config = config_lib.load(_CONFIG.value, overrides)

    from bloodjax.planning import planner, summary
    from bloodjax.report import plan_page

    plan = planner.plan(
        config,
        machine,
        batch_size=_BATCH.value,
        images=_IMAGES.value,
        classes=_CLASSES.value,
        only=_STEPS.value,
        search=_SEARCH.value,
    )
    print(summary.as_text(plan))
    if out is not None:
        plan_page.write(plan, summary.page(plan), out)


if __name__ == "__main__":
    command.run(
        main,
        name="plan",
        required=("config", "device"),
        takes_config=True,
        example="--config=convnext_base --device=v5e-8 --batch_size=256 --out=plan.json",
    )
