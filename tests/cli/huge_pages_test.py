"""Tests of bloodjax/cli/huge_pages.py, in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

from bloodjax.cli import huge_pages

SCRIPT = """
import os, sys
from bloodjax import hugepages
hugepages.restart()
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

    def start(module, tunables):
        (tmp_path / f"{module.rpartition('.')[2]}.py").write_text(SCRIPT)
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path), module, "--a=b c"],
            env={**os.environ, "GLIBC_TUNABLES": tunables, "PYTHONPATH": str(tmp_path)},
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


def test_another_program_is_left_alone(started):
    assert started("program", "") == " ['--a=b c']"
    huge_pages.restart()  # nor are these tests run again
