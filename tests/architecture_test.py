"""Rules of the layout: imports point downward, a library has one door, a short top level."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "bloodjax"

# From the ground up: a folder may import from those before it, and from itself.
FLOORS = (
    "errors",
    "distributed",
    "io",
    "cli",
    "tracking",
    "metrics",
    "ops",
    "data",
    "models",
    "augment",
    "corruptions",
    "pretrained",
    "checkpoints",
    "config",
    "profiling",
    "report",
    "training",
    "attribution",
    "planning",
    "evaluation",
    "adaptation",
    "tuning",
    "exporting",
    "serving",
    "run",
    "cross_validation",
)
COMMANDS = (
    "main",
    "evaluate",
    "adapt",
    "predict",
    "audit",
    "pack",
    "convert",
    "list_models",
    "list_configs",
    "preview",
    "plan",
    "export",
    "serve",
    "sweep",
)
# What the whole project is written in; every other library is imported by one module.
LANGUAGE = {"flax", "jax", "jaxtyping", "numpy", "optax", "scipy"}
# Config files build a ConfigDict from the defaults; loading reads it.
DOORS_OF_A_FOLDER = {"ml_collections": "config"}


def _modules() -> dict[str, pathlib.Path]:
    """Dotted name below `bloodjax` ("" for the package itself) -> file."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imported(tree: ast.AST):
    """Absolute dotted names that a module imports, at its top and in its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("bloodjax.") in MODULES else node.module


def _imports(name: str) -> set[str]:
    tree = ast.parse(MODULES[name].read_text("utf-8"))
    return {found for found in _imported(tree) if found}


IMPORTS = {name: _imports(name) for name in MODULES}


def _own(name: str) -> set[str]:
    """The modules of ours that `name` imports, as dotted names below `bloodjax`."""
    prefix = "bloodjax."
    found = IMPORTS[name]
    return {x.removeprefix(prefix) if x != "bloodjax" else "" for x in found if _is_ours(x)}


def _is_ours(name: str) -> bool:
    return name == "bloodjax" or name.startswith("bloodjax.")


def _folder(name: str) -> str:
    return name.split(".")[0]


def test_no_import_points_upward():
    upward = [
        f"{name} -> {other}"
        for name in MODULES
        if _folder(name) in FLOORS
        for other in _own(name)
        if _folder(other) != _folder(name)
        and (
            _folder(other) not in FLOORS
            or FLOORS.index(_folder(other)) > FLOORS.index(_folder(name))
        )
    ]
    assert not upward


def test_no_modules_import_one_another_in_a_circle():
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]):
        assert name not in path, f"a circle: {' -> '.join((*path[path.index(name) :], name))}"
        if name in done:
            return
        for other in sorted(_own(name)):
            # A package whose front offers what its modules define is not a circle.
            if other in MODULES and other != name and not name.startswith(f"{other}."):
                walk(other, (*path, name))
        done.add(name)

    for name in sorted(MODULES):
        walk(name, ())


def test_a_library_has_one_door():
    doors: dict[str, set[str]] = {}
    for name, found in IMPORTS.items():
        for library in {_folder(x) for x in found if not _is_ours(x)}:
            if library not in sys.stdlib_module_names and library not in LANGUAGE:
                doors.setdefault(library, set()).add(name)
    for library, folder in DOORS_OF_A_FOLDER.items():
        assert {_folder(name) for name in doors.pop(library)} == {folder}
    several = {library: sorted(names) for library, names in doors.items() if len(names) > 1}
    assert not several
    assert "absl" in doors, "the walk over the imports finds something"


@pytest.mark.parametrize("name", sorted(p.name for p in ROOT.iterdir()))
def test_the_top_level_holds_commands_the_face_and_folders(name):
    known = {f"{module}.py" for module in (*COMMANDS, *FLOORS, "__init__", "__main__")}
    folders = {*FLOORS, "configs", "__pycache__"}
    assert name in known | folders | {"py.typed"}


def test_no_folder_is_called_utils():
    vague = {"utils", "util", "helpers", "common", "misc", "lib"}
    assert not [p for p in ROOT.rglob("*") if p.is_dir() and p.name in vague]


def test_tests_mirror_the_source():
    tests = pathlib.Path(__file__).parent
    folders = {path.parent for path in ROOT.rglob("*.py")}
    names = {path.relative_to(ROOT) for path in folders}
    mirrored = {path.parent.relative_to(tests) for path in tests.rglob("*_test.py")}
    beside = {pathlib.Path(name) for name in ("benchmarks", "launch")}
    assert mirrored - beside <= names
