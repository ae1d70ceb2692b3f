"""Lets mkdocstrings show a function of the package whose name a command's module has too."""

from __future__ import annotations

import griffe


class Face(griffe.Extension):
    """Keeps what `bloodjax/__init__.py` defines, such as `evaluate`, in place of a submodule."""

    def __init__(self):
        self._defined: dict[str, griffe.Object | griffe.Alias] = {}

    def on_module_members(self, *, mod: griffe.Module, **_) -> None:
        """Notes the functions and imports of the package, before its submodules are loaded."""
        if mod.path == "bloodjax":
            self._defined = dict(mod.members)

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        """Puts them back, once the submodules are loaded."""
        if pkg.path == "bloodjax":
            pkg.members.update(self._defined)
