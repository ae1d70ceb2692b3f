"""The command `bloodjax`: `bloodjax COMMAND ...` runs the module of the command.

Each is also `python -m bloodjax.MODULE`; see `COMMANDS`.
"""

from __future__ import annotations

import runpy
import sys

from bloodjax import __version__
from bloodjax.errors import did_you_mean

# Command -> its module, and what it does.
COMMANDS = {
    "train": ("main", "Trains a classifier, or resumes a run."),
    "evaluate": ("evaluate", "Scores runs on labelled images."),
    "predict": ("predict", "Classifies images."),
    "serve": ("serve", "Serves a page, and an HTTP endpoint, that classify images."),
    "adapt": ("adapt", "Adapts a trained run to the images of another laboratory."),
    "export": ("export", "Writes a classifier as a file that other tools run."),
    "sweep": ("sweep", "Searches for better hyperparameters by many runs."),
    "audit": ("audit", "Finds junk, duplicates, label conflicts and leakage in datasets."),
    "preview": ("preview", "Draws a sheet of augmented training images."),
    "plan": ("plan", "Plans a run on a TPU or GPU that is not here: memory, time, cost."),
    "pack": ("pack", "Writes a dataset as ArrayRecord shards."),
    "convert": ("convert", "Writes a network's pretrained weights as one file."),
    "models": ("list_models", "Lists the networks and their pretrained weights."),
    "configs": ("list_configs", "Lists the recipes, for --config=NAME."),
}


def main() -> None:
    """Runs `bloodjax COMMAND ...` and exits."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "help"):
        print(_help())
        sys.exit(0)
    if name == "--version":
        print(f"bloodjax {__version__}")
        sys.exit(0)
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS)
        if hasattr(sys.stderr, "reconfigure"):  # a terminal may lack the letters of the name
            sys.stderr.reconfigure(errors="backslashreplace")
        print(f"error: unknown command {name!r}: {hint}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    try:
        # As `__main__` and not as an import: the same start as `python -m bloodjax.MODULE`.
        runpy.run_module(f"bloodjax.{COMMANDS[name][0]}", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:  # in the imports before `cli.command` handles it
        print("stopped", file=sys.stderr)
        sys.exit(130)


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    return "\n".join(
        [
            "usage: bloodjax COMMAND [--flag=value ...]",
            "",
            "Fine-tunes ImageNet CNNs to classify cells under a microscope.",
            "",
            *(f"  {name.ljust(width)}{what}" for name, (_, what) in COMMANDS.items()),
            "",
            "bloodjax COMMAND --help shows the flags of a command.",
            "",
            "Example:",
            "  bloodjax train --config=quickstart --workdir=runs/first",
        ]
    )


if __name__ == "__main__":
    main()
