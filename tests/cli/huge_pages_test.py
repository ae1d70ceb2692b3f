"""Restarts, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

from bloodjax.cli import huge_pages

SCRIPT = """
import os, sys
from bloodjax.cli import huge_pages
huge_pages.restart()
print(os.environ.get("GLIBC_TUNABLES", ""), sys.argv[1:])
"""
# As `python -m` runs a module, one that lies in the folder given first.
RUN = """
import runpy, sys, bloodjax
bloodjax.__path__.append(sys.argv.pop(1))
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def started(tmp_path):
    """What the script prints as a module of the given name, under the given tunables."""

    def start(module, tunables, **environment):
        (tmp_path / f"{module.rpartition('.')[2]}.py").write_text(SCRIPT)
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path), module, "--a=b c"],
            env={
                **os.environ,
                "GLIBC_TUNABLES": tunables,
                "PYTHONPATH": str(tmp_path),
                **environment,
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.rstrip("\n")

    return start


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@needs_glibc
@pytest.mark.parametrize("before", ["", "glibc.malloc.check=0"])
def test_a_command_starts_again_with_huge_pages_and_the_same_arguments(started, before):
    expected = f"{before}:glibc.malloc.hugetlb=1".lstrip(":")
    assert started("bloodjax.told", before) == f"{expected} ['--a=b c']"


def test_a_choice_is_kept(started):
    assert (
        started("bloodjax.told", "glibc.malloc.hugetlb=0") == "glibc.malloc.hugetlb=0 ['--a=b c']"
    )


def test_the_restart_can_be_refused(started):
    assert started("bloodjax.told", "", BLOODJAX_HUGE_PAGES="0") == " ['--a=b c']"


def test_another_program_is_left_alone(started):
    assert started("program", "") == " ['--a=b c']"
    huge_pages.restart()  # nor are these tests run again


# A config file is run after the restart.
SHOW = "import os; print(os.environ.get('GLIBC_TUNABLES'), os.getpid())"


@needs_glibc
@pytest.mark.parametrize(("choice", "tunables"), [("1", "glibc.malloc.hugetlb=1"), ("0", "None")])
def test_the_console_script_and_python_m_restart(tmp_path, choice, tunables):
    (tmp_path / "bloodjax_script.py").write_text("from bloodjax.__main__ import main\nmain()\n")
    config = tmp_path / "config.py"
    config.write_text(f"{SHOW}\ndef get_config(): pass\n")
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    flags = [f"--config={config}", f"--workdir={tmp_path / 'run'}"]
    for start in (
        [str(tmp_path / "bloodjax_script.py"), "train"],
        ["-m", "bloodjax", "train"],
        ["-m", "bloodjax.main"],
    ):
        process = subprocess.Popen(
            [sys.executable, *start, *flags],
            env={**environment, "BLOODJAX_HUGE_PAGES": choice},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        printed, error = process.communicate()
        assert printed.split() == [tunables, str(process.pid)], start  # the same process
        assert error.endswith("get_config() returns NoneType, expected a ConfigDict\n")
