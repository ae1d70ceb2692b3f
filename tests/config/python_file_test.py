import importlib
import pathlib
import re
import sys

import pytest

from bloodjax import config as config_lib
from bloodjax.errors import UserError

SMOOTHED = """from bloodjax import config as config_lib
from configs import common
from configs.more.parts import part
import helper_of_config
def get_config():
    config = config_lib.defaults()
    config.loss.label_smoothing = common.SMOOTHING + part() + helper_of_config.ZERO
    return config
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("def get_config():\n return 1 / 0\n", "line 3: ZeroDivisionError: division by zero"),
        ("import nothing_like_it\n", "line 2: ModuleNotFoundError: No module named"),
        ("\n\nx = nought\n", "line 4: NameError: name 'nought' is not defined"),
        ("a\0b", "null bytes"),
        ("open('none.txt')\n", "line 2: FileNotFoundError: [Errno 2] No such file"),
        ("import sys\nsys.exit(0)\n", "line 3: SystemExit: 0"),
        ("{}['a']\n", "line 2: a"),
    ],
)
def test_a_config_file_that_fails_is_one_line(config_file, line, expected):
    with pytest.raises(UserError) as raised:
        config_lib.load(str(config_file(line)))
    assert re.fullmatch(rf"--config=.*\.py: .*{re.escape(expected)}.*", str(raised.value))


def test_the_line_is_also_named_of_a_relative_path(config_file, monkeypatch):
    path = pathlib.Path(config_file("x = 1 / 0\n"))
    monkeypatch.chdir(path.parent)
    with pytest.raises(UserError, match=rf"^--config={path.name}: line 2: ZeroDivisionError"):
        config_lib.load(path.name)


@pytest.fixture
def project(tmp_path):
    """Writes a folder with configs/ and a helper beside it; returns the config file."""

    def write(name, smoothing):
        files = {
            "configs/common.py": f"SMOOTHING = {smoothing}\n",
            "configs/more/parts.py": "def part():\n import configs.more.zero as z\n return z.Z\n",
            "configs/more/zero.py": "Z = 0.0\n",
            "helper_of_config.py": "ZERO = 0.0\n",
            "configs/mine.py": SMOOTHED,
        }
        for path, text in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return str(tmp_path / name / "configs/mine.py")

    return write


def test_config_folders_of_one_name_share_no_modules(project):
    first, second = project("a", 0.1), project("b", 0.2)
    before, path = dict(sys.modules), list(sys.path)
    for file, smoothing in ((first, 0.1), (second, 0.2), (first, 0.1)):
        assert config_lib.load(file).loss.label_smoothing == smoothing
    assert (sys.path, sys.modules) == (path, before)
    project("a", 0.3)  # edited within a second, to a file of the same size
    assert config_lib.load(first).loss.label_smoothing == 0.3
    assert not list(pathlib.Path(first).parent.rglob("*.pyc"))


def test_a_config_gets_its_own_module_and_a_program_keeps_its_own(project, tmp_path, monkeypatch):
    (tmp_path / "program/configs").mkdir(parents=True)
    (tmp_path / "program/configs/common.py").write_text("SMOOTHING = 0.4\n")
    monkeypatch.syspath_prepend(tmp_path / "program")
    common = importlib.import_module("configs.common")
    assert config_lib.load(project("a", 0.1)).loss.label_smoothing == 0.1
    assert sys.modules["configs.common"] is importlib.import_module("configs.common") is common
    assert common.SMOOTHING == 0.4
    monkeypatch.delitem(sys.modules, "configs.common")
    monkeypatch.delitem(sys.modules, "configs")


def test_a_failing_config_leaves_no_module_behind(project):
    file = project("a", 0.1)
    pathlib.Path(file).write_text(SMOOTHED + "raise ValueError(1)\n")
    before = dict(sys.modules)
    with pytest.raises(UserError, match="ValueError: 1"):
        config_lib.load(file)
    assert sys.modules == before
