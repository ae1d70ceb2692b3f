"""When a command restarts, and restarts in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

from bloodjax.cli import huge_pages, restart

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
MAIN = "bloodjax.main"
FLAGS = ["--config=a b", "--workdir=-m"]


@pytest.mark.parametrize(
    "start",
    [
        ["-m", MAIN],
        ["-m", "bloodjax", "train"],
        ["/venv/bin/bloodjax", "train"],
        ["-X", "importtime", "-Wignore", "-W", "error", "-O", "-m", MAIN],
    ],
)
@pytest.mark.parametrize("flags", [FLAGS, []])
def test_a_command_is_one(start, flags):
    assert restart.is_command(["python", *start, *flags], ["/x/main.py", *flags], MAIN)


@pytest.mark.parametrize(
    ("started", "argv", "module"),
    [
        (["-m", "ipykernel_launcher", "-f", "k.json"], FLAGS, MAIN),  # %run -m bloodjax.main
        (["script.py"], FLAGS, MAIN),  # runpy.run_module
        (["script.py", *FLAGS], FLAGS, MAIN),
        (["-m", "mine", *FLAGS], FLAGS, MAIN),
        (["-c", "import runpy", *FLAGS], FLAGS, MAIN),
        (["-"], FLAGS, MAIN),
        ([], [], MAIN),
        (["-m", "pdb", "-m", MAIN, *FLAGS], FLAGS, MAIN),
        (["/bin/coverage", "run", "-m", MAIN, *FLAGS], FLAGS, MAIN),
        (["-m", MAIN, *FLAGS], FLAGS[:1], MAIN),  # a script changed the arguments
        (["-m", MAIN, *FLAGS], FLAGS, "bloodjax.evaluate"),
        (["-m", "program", *FLAGS], FLAGS, "program"),
        (["/venv/bin/bloodjax", *FLAGS], FLAGS, MAIN),
    ],
)
def test_another_program_is_not_started_again(started, argv, module):
    assert not restart.is_command(["python", *started], ["/x/main.py", *argv], module)


@needs_glibc
def test_a_choice_of_huge_pages_is_kept(monkeypatch):
    monkeypatch.delenv("BLOODJAX_HUGE_PAGES", raising=False)
    for before, after in (
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", None),
    ):
        monkeypatch.setenv("GLIBC_TUNABLES", before)
        assert huge_pages.environment().get("GLIBC_TUNABLES") == after
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    monkeypatch.setenv("BLOODJAX_HUGE_PAGES", "0")
    assert huge_pages.environment() == {}


def test_a_start_that_the_system_refuses_changes_nothing(monkeypatch):
    tried = []

    def refuse(*arguments):
        tried.append((arguments, os.environ.get("A_TUNABLE"), os.environ["ANOTHER"]))
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setenv("ANOTHER", "0")
    monkeypatch.setattr(restart.huge_pages, "environment", lambda: {"A_TUNABLE": "1"})
    monkeypatch.setattr(restart, "_utf8", lambda: {"ANOTHER": "1"})
    monkeypatch.setattr(restart, "is_command", lambda *_: True)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", sys.__spec__)
    monkeypatch.setattr(sys, "stdout", None)  # closed before the start
    monkeypatch.setattr(os, "execv", refuse)
    restart.restart()
    assert tried == [((sys.executable, sys.orig_argv), "1", "1")]
    assert "A_TUNABLE" not in os.environ
    assert os.environ["ANOTHER"] == "0"


def test_these_tests_are_not_run_again():
    restart.restart()


# A config file is run after the restart.
SHOW = "import os, sys; print(os.environ.get('GLIBC_TUNABLES'), sys.flags.utf8_mode, os.getpid())"


@needs_glibc
@pytest.mark.parametrize(
    ("choice", "tunables"),
    [("1", "glibc.malloc.hugetlb=1"), pytest.param("0", "None", marks=pytest.mark.slow)],
)
def test_the_console_script_and_python_m_restart(tmp_path, choice, tunables):
    (tmp_path / "bloodjax").write_text("from bloodjax.__main__ import main\nmain()\n")
    script = "import runpy, sys\nsys.argv[1:2] = []\nprint('once')\n"
    script += "runpy.run_module('bloodjax.main', run_name='__main__', alter_sys=True)\n"
    (tmp_path / "script.py").write_text(script)
    config = tmp_path / "config.py"
    config.write_text(f"{SHOW}\ndef get_config(): pass\n")
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    environment |= {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    for start in (
        [str(tmp_path / "bloodjax"), "train"],
        ["-m", "bloodjax", "train"],
        ["-m", "bloodjax.main"],
        [str(tmp_path / "script.py"), "train"],
    ):
        process = subprocess.Popen(
            [sys.executable, *start, *flags],
            env={**environment, "BLOODJAX_HUGE_PAGES": choice},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        printed, error = process.communicate()
        expected = [tunables, "1", str(process.pid)]  # the same process
        if "script.py" in start[0]:
            expected = ["once", "None", "0", str(process.pid)]
        assert printed.split() == expected, start
        assert error.endswith("get_config() returns NoneType, expected a ConfigDict\n")


@pytest.mark.parametrize(
    "closed",
    [
        ">&- 2>&-",
        *(pytest.param(each, marks=pytest.mark.full) for each in (">&-", "2>&-", "<&-")),
        pytest.param("2>/dev/full", marks=pytest.mark.full),
    ],
)
def test_a_command_runs_with_closed_streams(tmp_path, closed):
    config = tmp_path / "config.py"
    config.write_text("from bloodjax import config\nget_config = config.defaults\n")
    command = f'"$0" -m bloodjax.preview --config={config} --config.data.train=synthetic:8'
    done = subprocess.run(
        ["sh", "-c", f"{command} --out={tmp_path}/sheet.txt {closed}", sys.executable],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
