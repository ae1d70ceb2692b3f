"""The recipes inside the package: config files that `--config=NAME` finds by name."""

from __future__ import annotations

import ast
import os
import pathlib

from bloodjax.errors import UserError, did_you_mean

_FOLDER = pathlib.Path(__file__).parents[1] / "configs"


def names() -> list[str]:
    """Names of all recipes, such as "quickstart" and "recipes/robust", sorted."""
    files = sorted(_FOLDER.rglob("*.py"))
    found = [path.relative_to(_FOLDER).with_suffix("").as_posix() for path in files]
    return [name for name in found if name.rpartition("/")[2] not in ("__init__", "common")]


def summary(name: str) -> str:
    """One line about a recipe: the first of its file."""
    text = (_FOLDER / f"{name}.py").read_text("utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def locate(name: str) -> str:
    """Path of the config file for `--config=name`.

    Args:
      name: A recipe's name, its last part alone ("robust"), or the path of a config file, which may
        start with "~".

    Raises:
      UserError: There is no such recipe or file.
    """
    known = names()
    by_last_part = {each.rpartition("/")[2]: each for each in known}
    if name in known or name in by_last_part:
        return str(_FOLDER / f"{by_last_part.get(name, name)}.py")
    path = os.path.expanduser(name)
    if os.path.isfile(path):
        return path
    word = pathlib.PurePath(name).stem
    if name.endswith(".py"):
        hint = "a Python file with get_config()"
        if word in by_last_part:
            hint += f", or --config={by_last_part[word]} for the recipe"
        raise UserError(f"--config={name}: no such file; expected {hint}")
    hint = did_you_mean(word, [*by_last_part], "--config={}")
    raise UserError(f"--config={name}: no such recipe or file; {hint}")
