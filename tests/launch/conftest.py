"""Stand-ins for gcloud, sbatch, ... that record their calls, on a PATH without the real ones."""

import pathlib
import shutil
import subprocess

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
# All that the launchers need of a machine.
_TOOLS = (
    "bash cat cp date dirname env grep gzip head mkdir mktemp mv nohup ps rm sed setsid sleep sort"
    " tar touch tr"
)
_STANDIN = """#!/usr/bin/env bash
{ printf '%s\\x1f' "${0##*/}" "$@"; printf '\\x1e'; } >>"$CALLS"
# reply FILE: prints the file's first line and takes it away; the last one stays.
reply() {
  head -n 1 "$1"
  if (($(grep -c '' "$1") > 1)); then sed -i 1d "$1"; fi
}
"""


class Machine:
    """A folder that is HOME, PATH and the record of all calls for the scripts that run on it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for tool in _TOOLS.split():
            (self.bin / tool).symlink_to(shutil.which(tool))
        self._calls = folder / "calls"
        self.env = {"PATH": str(self.bin), "HOME": str(folder), "CALLS": str(self._calls)}

    def standin(self, name: str, body: str = "") -> None:
        """Installs a command that records its call and then does what `body` says, in bash."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(_STANDIN + body + "\n")
        path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        """All calls so far, each as its words."""
        if not self._calls.exists():
            return []
        return [call.split("\x1f")[:-1] for call in self._calls.read_text().split("\x1e")[:-1]]

    def start(self, script: str, *flags: str, **options) -> subprocess.Popen:
        """Starts a script of launch/."""
        return subprocess.Popen(
            [str(LAUNCH / script), *flags],
            env=self.env | options.pop("env", {}),
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=options.pop("cwd", self.folder),
            **options,
        )

    def run(self, script: str, *flags: str, **options) -> subprocess.CompletedProcess:
        """Runs a script of launch/ to its end."""
        with self.start(script, *flags, **options) as process:
            out, err = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def mistake(self, script: str, *flags: str, **options) -> str:
        """The one line that a script ends with, as status 2, for a user's mistake."""
        ended = self.run(script, *flags, **options)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith("error: ")
        assert ended.stderr.count("\n") == 1
        return ended.stderr


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def launch():
    return LAUNCH
