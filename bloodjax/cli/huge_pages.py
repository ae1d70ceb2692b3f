"""Huge pages for a process's memory, by which training on a CPU is up to a third faster.

XLA takes the memory of each step anew from the C library, gigabytes in pages of 4 KiB, and the
kernel clears and maps every page as it is first touched. glibc asks for pages of 2 MiB instead if
the environment says so as a process starts, and only then; so a command starts once more.
"""

from __future__ import annotations

import os
import platform
import sys

_VARIABLE = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"


def restart() -> None:
    """Runs this process's command line again, with huge pages; returns where that is no use.

    That is where they are asked for already, or refused (`GLIBC_TUNABLES=glibc.malloc.hugetlb=0`);
    where the C library is another; and where Python was not started on a module of ours.
    """
    spec = sys.modules["__main__"].__spec__
    ours = spec is not None and spec.name.startswith(f"{__package__}.")
    chosen = os.environ.get(_VARIABLE, "")
    if not ours or _TUNABLE in chosen or platform.libc_ver()[0] != "glibc":
        return
    os.environ[_VARIABLE] = f"{chosen}:{_TUNABLE}=1".lstrip(":")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, sys.orig_argv)
