"""The pages: their length, their links, and the files, modules, recipes and keys that they name."""

import ast
import importlib.util
import pathlib
import re

import pytest

from bloodjax.__main__ import COMMANDS
from bloodjax.config.defaults import defaults
from bloodjax.config.validation import RULES

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("", "benchmarks", "docs", "docs/guides", "docs/internals")
    for path in (ROOT / folder).glob("*.md")
)
# Of files and modules they tell the past.
HISTORY = {"CHANGELOG.md"}


def _hooks():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = _hooks()


def read(page):
    return (ROOT / page).read_text("utf-8")


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(page):
    """What a page has in backticks, outside blocks of code."""
    return re.findall(r"`([^`\n]+)`", without_code(read(page)))


@pytest.mark.parametrize(("page", "most"), [("README.md", 150), ("docs/ARCHITECTURE.md", 200)])
def test_a_page_that_is_read_in_one_sitting_stays_short(page, most):
    assert len(read(page).splitlines()) <= most


def test_links_lead_to_files():
    missing = {}
    for page in PAGES:
        links = re.findall(r"\]\(([^)\s]+)\)", without_code(read(page)))
        for path in (link.partition("#")[0] for link in links if "://" not in link):
            if path and not (ROOT / page).parent.joinpath(path).exists():
                missing.setdefault(page, []).append(path)
    assert not missing


def test_links_to_headings_lead_to_headings():
    missing = {}
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", without_code(read(page))):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            if "://" not in link and anchor not in _anchors(target):
                missing.setdefault(page, []).append(link)
    assert not missing


def _anchors(path):
    """Of a page's headings, as the site and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


# What a run writes, or a file that the reader writes.
WRITTEN = {"checkpoints/broken/", "evaluate/test/"}


def test_files_that_are_named_exist():
    path = re.compile(r"(?:[\w.-]+/)+(?:[\w-]+\.(?:py|sh|sbatch|yaml))?")
    missing = {}
    for page in set(PAGES) - HISTORY:
        for span in set(filter(path.fullmatch, spans(page))) - WRITTEN:
            places = (root / span for root in (ROOT, ROOT / "bloodjax", ROOT / "benchmarks"))
            if span.count("/") > span.endswith("/") and not any(p.exists() for p in places):
                missing.setdefault(page, []).append(span)
    assert not missing


def test_modules_that_are_named_exist():
    missing = {}
    for page in set(PAGES) - HISTORY:
        text = read(page)
        dotted = set(re.findall(r"(?:python -m |`)((?:bloodjax|benchmarks)(?:\.\w+)+)", text))
        dotted |= set(re.findall(r"^::: ((?:bloodjax|benchmarks)(?:\.\w+)+)", text, re.MULTILINE))
        for name in dotted:
            if not _exists(name):
                missing.setdefault(page, []).append(name)
    assert not missing


def _exists(name):
    """Whether a dotted name is a module, or what a module defines or offers."""
    *parents, last = name.split(".")
    path = ROOT.joinpath(*parents, last)
    if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
        return True
    module = ROOT.joinpath(*parents)
    module = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    return module.exists() and last in _defined(module)


def _defined(path):
    tree = ast.parse(path.read_text("utf-8"))
    strings = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}  # __all__
    return strings | {node.name for node in tree.body if hasattr(node, "name")}


def test_commands_that_are_named_exist():
    rows = re.findall(
        r"^\| `(\w+)` \| `bloodjax\.(\w+)` \|", read("docs/commands.md"), re.MULTILINE
    )
    assert dict(rows) == {name: module for name, (module, _) in COMMANDS.items()}
    missing = {}
    for page in PAGES:
        code = "\n".join(re.findall(r"^```bash\n(.*?)^```", read(page), re.DOTALL | re.MULTILINE))
        named = set(re.findall(r"(?:^|bin/)bloodjax +(\w+)", code, re.MULTILINE))
        named |= {span.split()[1] for span in spans(page) if re.match(r"bloodjax [a-z]+\b", span)}
        if not named <= set(COMMANDS):
            missing[page] = named - set(COMMANDS)
    assert not missing


def test_the_commands_are_listed_with_all_their_flags():
    text = read("docs/commands.md")
    missing = {}
    for name, (module, _) in COMMANDS.items():
        source = read(f"bloodjax/{module}.py")
        lines = re.findall(rf"^bloodjax {name} .*$", text, re.MULTILINE)
        named = set(re.findall(r"--(\w+)", " ".join(lines)))
        if name in ("train", "plan"):  # in the text below, and on a page of its own
            named |= set(re.findall(r"--(\w+)", text + read("docs/plan.md")))
        flags = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"(?!, "", "Former)', source))
        if not flags <= named:
            missing[name] = flags - named
    assert not missing


def test_identifiers_that_are_named_exist():
    pages = ["docs/ARCHITECTURE.md", *(page for page in PAGES if page.startswith("docs/internals"))]
    folders = ("bloodjax", "tests", "benchmarks")
    files = [path for folder in folders for path in ROOT.glob(f"{folder}/**/*.py")]
    known = set(re.findall(r"\w+", "\n".join(path.read_text("utf-8") for path in files)))
    missing = {}
    for page in pages:
        for span in spans(page):
            names = re.findall(r"\w+", span) if re.fullmatch(r"[\w.]+(?:\(.*\))?", span) else []
            if not set(names) <= known:
                missing.setdefault(page, []).append(span)
    assert not missing


def _recipes():
    folder = ROOT / "bloodjax" / "configs"
    return {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.py")}


def test_recipes_that_are_named_exist():
    known = _recipes() | {"NAME", "NAME_OR_FILE", "...", "my_config.py"}
    missing = {}
    for page in PAGES:
        names = set(re.findall(r"--config=([\w./]+)", read(page)))
        if not names <= known:
            missing[page] = names - known
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "docs/configs.md"])
def test_the_table_of_recipes_lists_all(page):
    recipes = {name for name in _recipes() if not name.endswith(("__init__", "common"))}
    assert recipes <= set(spans(page))


def test_intervals_in_the_readme_are_results():
    figures = re.findall(r"\d\.\d+ \(\d\.\d+ to \d\.\d+\)", read("README.md"))
    results = read("benchmarks/RESULTS.md")
    assert figures
    assert not [figure for figure in figures if figure not in results]


def test_the_ci_script_finds_the_test_command():
    assert re.search(r"^python3 .*pytest", read("README.md"), re.MULTILINE)


def test_the_tree_of_modules_is_that_of_the_package():
    tree = re.search(r"^```\n(bloodjax/.*?)^```", read("docs/ARCHITECTURE.md"), re.S | re.M)[1]
    package = ROOT / "bloodjax"
    files = [path for path in package.rglob("*.py") if path.stem != "__init__"]
    modules = {p.stem for p in files if not {"configs", "name_maps", "spaces"} & set(p.parts)}
    assert not modules - set(re.findall(r"\w+", tree))
    folders = {path.parent.name for path in files}
    named = re.findall(r"^ +((?:\w+/?, )*\w+/?)  ", tree, re.MULTILINE)
    names = {name.rstrip("/") for line in named for name in line.split(", ")}
    assert not names - modules - folders


def test_the_configuration_reference_lists_every_key():
    values = hooks.flatten(defaults().to_dict())
    about = hooks.comments(hooks.DEFAULTS.read_text("utf-8"))
    expected = {key: rule[1] for key, rule in RULES.items()}
    made = hooks.config_reference(values, about, expected)
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \|", made, re.MULTILINE)
    keys = {re.sub(r"^phases\.\w+", "phases.*", key) for key in values}
    assert {name for name, _ in rows} == keys
    assert len(rows) == len(keys)


def test_the_configuration_reference_is_that_of_the_defaults():
    page = read("docs/config-reference.md")
    assert hooks.filled_reference(page) == page, "run python docs/hooks.py"


SOURCE = """
def defaults():
    return ConfigDict(
        {
            # What comes out
            # differs.
            "seed": 0,
            "size": 96,  # pixels
            # A group.
            "stop": {"metric": "loss", "patience": 10},
            "phases": {"head": _phase(3), "finetune": _phase(4)},
        }
    )


def _phase(epochs):
    return {
        # none | all
        "freeze": "none",
        "epochs": epochs,
    }
"""


def test_a_comment_belongs_to_the_key_below_or_beside_it():
    assert hooks.comments(SOURCE) == {
        "seed": "What comes out differs.",
        "size": "pixels",
        "stop": "A group.",
        "stop.metric": "",
        "stop.patience": "",
        "phases": "",
        "phases.*": "",
        "phases.*.freeze": "none | all",
        "phases.*.epochs": "",
    }


def test_a_row_of_the_reference_has_default_comment_and_rule():
    values = {"seed": 0, "phases.head.epochs": 3, "phases.finetune.epochs": 4}
    made = hooks.config_reference(values, {"seed": "a | b"}, {"epochs": "a number"})
    assert "| `seed` | int | `0` | a &#124; b |" in made
    assert "| `phases.*.epochs` | int | `3` (`head`), `4` (`finetune`) | *a number* |" in made


def test_links_follow_a_page_to_the_site():
    text = "[a](docs/data.md) [b](benchmarks/RESULTS.md#speed) [c](https://example.org/x.md)"
    expected = "[a](data.md) [b](results.md#speed) [c](https://example.org/x.md)"
    assert hooks.site_links(text, "README.md") == expected
    inner = hooks.site_links("[a](../../benchmarks/RESULTS.md) [b](../data.md)", "docs/x/y.md")
    assert inner == "[a](../results.md) [b](../data.md)"
