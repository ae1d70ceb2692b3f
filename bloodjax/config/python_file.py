"""Runs a Python file of the user, such as a config file, with the imports that it needs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from bloodjax.errors import UserError


def call_in_file(path: str, function: str, flag: str) -> Any:
    """Runs a Python file, and returns what a function without arguments in it returns.

    Args:
      path: The file.
      function: Name of the function.
      flag: The flag that named the file, for errors.

    Raises:
      UserError: The file is not Python, lacks the function, or raises an error.
    """
    # A config file may import others (`from configs import common`) from any working directory.
    folders = pathlib.Path(path).resolve().parents
    roots = folders[1:3]  # of configs/x.py and configs/recipes/x.py
    try:
        with _imports_from(roots):
            spec = importlib.util.spec_from_file_location("_bloodjax_config", path)
            if spec is None:
                raise UserError(f"{flag}={path}: expected a Python file (.py)")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            if not hasattr(module, function):
                raise UserError(f"{flag}={path}: it defines no {function}()")
            return getattr(module, function)()
    except UserError:
        raise
    except SyntaxError as error:
        line = f"line {error.lineno}: " if error.lineno else ""
        raise UserError(f"{flag}={path}: {line}{error.msg}") from error
    except (Exception, SystemExit) as error:  # the user's code can raise any type
        raise UserError(f"{flag}={path}: {_line(path, error)}{_message(error)}") from error


@contextlib.contextmanager
def _imports_from(roots: Sequence[pathlib.Path]) -> Iterator[None]:
    """Lets modules in `roots` be imported, and forgets them afterwards.

    Python keeps modules by name, so a second config in a folder of the same name would get the
    modules of the first one; and modules of the program's own would stand for the config's.
    """
    paths = [str(root) for root in roots]
    before = dict(sys.modules)
    hidden = {name: before[name] for name in before if _is_hidden(name, roots)}
    for name in hidden:
        del sys.modules[name]
    # Bytecode is found by time in seconds and size, so an edited file may not be read again.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path[:0] = paths
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        new = [name for name in sys.modules if name not in before or name in hidden]
        tops = {name.partition(".")[0] for name in new}
        own = {top for top in tops if top in hidden or (top not in before and _is_in(top, roots))}
        for name in new:
            if name.partition(".")[0] in own:
                del sys.modules[name]
        for path in paths:
            sys.path.remove(path)
        sys.modules.update(hidden)


def _is_hidden(name: str, roots: Sequence[pathlib.Path]) -> bool:
    """Whether a loaded module is another one than a config would import by this name."""
    top = name.partition(".")[0]
    if top in ("__main__", "bloodjax") or top in sys.stdlib_module_names:
        return False
    places = _places(top)
    if all(place.parent in roots for place in places):
        return False
    if any({"site-packages", "dist-packages"} & {*place.parts} for place in places):
        return False
    return any((root / top).is_dir() or (root / f"{top}.py").is_file() for root in roots)


def _is_in(top: str, roots: Sequence[pathlib.Path]) -> bool:
    """Whether a loaded module, or a part of it, is in one of the folders `roots` itself."""
    return any(place.parent in roots for place in _places(top))


def _places(top: str) -> list[pathlib.Path]:
    """The folders of a loaded package, or the file of another module; [] if it has none."""
    module = sys.modules.get(top)
    found = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    return [pathlib.Path(place).resolve() for place in found if isinstance(place, str)]


def _line(path: str, error: BaseException) -> str:
    """Names the last line of the config file that led to the error: "line N: ", or ""."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == os.path.abspath(path)]
    return f"line {lines[-1]}: " if lines else ""


def _message(error: BaseException) -> str:
    """The message, after the error's type, which is left out if a ConfigDict raised it."""
    if isinstance(error, ModuleNotFoundError) and error.name in ("configs", "configs.common"):
        return f"{error}; expected `from bloodjax.configs import common`"
    named = not isinstance(error, (AttributeError, KeyError, TypeError))
    # A KeyError as text is the repr of its argument.
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    return f"{type(error).__name__}: {text}" if named else text
