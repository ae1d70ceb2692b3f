"""The command `bloodjax`, and the help of each command."""

import pathlib
import re
import runpy
import signal
import subprocess
import sys

import pytest

import bloodjax
from bloodjax import __main__
from bloodjax.__main__ import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def start(tmp_path):
    """Runs a Python command line in an empty folder; returns what `subprocess.run` does."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True
        )

    return run


def _screens(start, name, module):
    for way in (("-m", "bloodjax", name), ("-m", f"bloodjax.{module}")):
        done = start(*way, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        yield done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_one_screen(start, name):
    first, second = _screens(start, name, COMMANDS[name][0])
    assert first == second
    lines = first.splitlines()
    assert lines[0].startswith(f"usage: bloodjax {name}")
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    if name != "configs":  # it has no flags
        assert lines[-1].startswith(f"  bloodjax {name} --")
        assert all(re.match(r"  --[\w.]+(=\S+)?(  |$)|    ", line) for line in _rows(lines))


def _rows(lines):
    start = lines.index("", 2) + 1
    return lines[start : lines.index("", start)]


def test_an_interrupt_in_the_first_imports_ends_with_a_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["bloodjax", "train"])
    monkeypatch.setattr(runpy, "run_module", interrupted)
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert (ended.value.code, capsys.readouterr().err) == (130, "stopped\n")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], []])
def test_the_help_lists_the_commands(start, arguments):
    done = start("-m", "bloodjax", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert [line.split()[0] for line in _rows(lines)] == list(COMMANDS)
    assert lines[-1].startswith("  bloodjax train --config=")


def test_every_command_is_a_module_and_every_module_a_command():
    modules = {
        path.stem
        for path in (ROOT / "bloodjax").glob("*.py")
        if "command.run(" in path.read_text("utf-8")
    }
    assert {module for module, _ in COMMANDS.values()} == modules


def test_the_version(start):
    assert start("-m", "bloodjax", "--version").stdout == f"bloodjax {bloodjax.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian': did you mean train?"),
        (["zzz"], "unknown command 'zzz': expected one of train, evaluate, predict, "),
        (["evaluate", "--wrokdir=a"], "unknown flag --wrokdir: did you mean --workdir?"),
        (["train", "--conifg.seed=1"], "unknown flag --conifg.seed: did you mean --config.seed?"),
        (
            ["train", "--config", "quickstrat", "--workdir", "a"],
            "--config=quickstrat: no such recipe or file; did you mean --config=quickstart?",
        ),
    ],
)
def test_a_misspelt_word_gets_the_nearest(start, tmp_path, arguments, message):
    done = start("-m", "bloodjax", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_configs_lists_the_recipes(start):
    done = start("-m", "bloodjax", "configs")
    assert done.returncode == 0
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["quickstart"].startswith("A first run ")
    assert "recipes/robust" in rows


def test_a_stderr_that_is_closed_changes_nothing(tmp_path):
    command = f"exec {sys.executable} -m bloodjax configs 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert "quickstart" in done.stdout


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    arguments = [sys.executable, "-m", "bloodjax", "configs"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(arguments, cwd=tmp_path, text=True, **pipes) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 128 + signal.SIGPIPE
