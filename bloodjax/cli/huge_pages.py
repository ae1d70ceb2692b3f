"""Huge pages for a process's memory, which make training on a CPU up to a third faster.

XLA allocates the memory of each step from the C library again, gigabytes in pages of 4 KiB, and the
kernel clears and maps each page when it is first touched. glibc requests pages of 2 MiB instead if
an environment variable says so when the process starts, and only then. So a command restarts
itself once with that variable, see `restart`.
"""

from __future__ import annotations

import os
import platform

OPT_OUT = "BLOODJAX_HUGE_PAGES"
_VARIABLE = "GLIBC_TUNABLES"
_TUNABLE = "glibc.malloc.hugetlb"


def environment() -> dict[str, str]:
    """The environment variable that this process lacks for huge pages.

    It is {} if
    - the environment has `BLOODJAX_HUGE_PAGES=0`;
    - `GLIBC_TUNABLES` sets `glibc.malloc.hugetlb` to any value, as it does after a restart; or
    - the C library is not glibc.
    """
    chosen = os.environ.get(_VARIABLE, "")
    if os.environ.get(OPT_OUT) == "0" or _TUNABLE in chosen or platform.libc_ver()[0] != "glibc":
        return {}
    return {_VARIABLE: f"{chosen}:{_TUNABLE}=1".lstrip(":")}
