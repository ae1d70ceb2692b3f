"""All of launch/: shellcheck has nothing to say, and what is to be started can be."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(path for path in LAUNCH.iterdir() if path.suffix in (".sh", ".sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck(script):
    # Beside the Python that runs the tests, where the extra [test] puts it, or anywhere.
    found = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
    shellcheck = found or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (the extra [test] brings it)")
    ended = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_is_executable_unless_it_is_sourced(script):
    assert os.access(script, os.X_OK) == (script.name != "lib.sh")


def test_all_launchers_have_a_dry_run_and_a_help(machine):
    for script in SCRIPTS:
        if script.name in ("lib.sh", "slurm.sbatch"):
            continue
        ended = machine.run(script.name, "--help")
        assert (ended.returncode, "--dry-run" in ended.stdout) == (0, True), script.name
