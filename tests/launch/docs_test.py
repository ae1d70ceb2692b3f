"""docs/running-anywhere.md: every command of a launcher in it is one that the launcher takes."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "running-anywhere.md").read_text()


def commands():
    """Each line of a code block that calls a launcher, made dry."""
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL):
        lines = block.replace("\\\n", " ").splitlines()
        for line in lines:
            if line.startswith("launch/"):
                yield re.sub(r"^(launch/\w+\.sh(?: [a-z]+)?)", r"\1 --dry-run", line)


VARIABLES = "\n".join(re.findall(r"^(?:flags|image)=.*$", PAGE, re.MULTILINE))


@pytest.mark.parametrize("command", list(commands()))
def test_a_command_of_the_page_is_taken(machine, command):
    code = f"SCRATCH=/scratch\n{VARIABLES}\n{command}"
    ended = subprocess.run(
        ["bash", "-euc", code],
        env=machine.env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout


def test_the_page_has_all_launchers():
    names = {re.match(r"launch/(\w+)", command)[1] for command in commands()}
    assert names == {"gke", "sky", "slurm", "tpu_vm"}
