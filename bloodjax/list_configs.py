"""Lists the recipes, for --config=NAME."""

from __future__ import annotations

from bloodjax.cli import command


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.config import recipes

    known = recipes.names()
    width = max(map(len, known)) + 2
    for name in known:
        print(f"{name.ljust(width)}{recipes.summary(name)}")


if __name__ == "__main__":
    command.run(main, name="configs", required=())
