"""Huge pages for a process's memory, which make training on a CPU up to a third faster.

XLA allocates the memory of each step from the C library again, gigabytes in pages of 4 KiB, and the
kernel clears and maps each page when it is first touched. glibc requests pages of 2 MiB instead if
an environment variable says so when the process starts, and only then. So a command restarts
itself once with that variable, see `command.run`.
"""

from __future__ import annotations

import os
import platform
import sys

OPT_OUT = "BLOODJAX_HUGE_PAGES"
_VARIABLE = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"


def restart() -> None:
    """Replaces this process by one with the same command line and huge pages.

    Returns, and changes nothing, if
    - the environment has `BLOODJAX_HUGE_PAGES=0`;
    - `GLIBC_TUNABLES` sets `glibc.malloc.hugetlb` to any value, as it does after the restart;
    - the C library is not glibc; or
    - the process is neither `bloodjax COMMAND` nor `python -m bloodjax.COMMAND`.
    """
    spec = sys.modules["__main__"].__spec__  # of the command's module under `bloodjax` too
    ours = spec is not None and spec.name.startswith("bloodjax.")
    chosen = os.environ.get(_VARIABLE, "")
    refused = os.environ.get(OPT_OUT) == "0" or _TUNABLE in chosen
    if not ours or refused or platform.libc_ver()[0] != "glibc":
        return
    os.environ[_VARIABLE] = f"{chosen}:{_TUNABLE}=1".lstrip(":")
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # it is None where it was closed before the start
            stream.flush()
    os.execv(sys.executable, sys.orig_argv)
