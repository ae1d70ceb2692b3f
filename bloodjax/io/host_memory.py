"""The memory that this process may use."""

from __future__ import annotations

import os
import pathlib

_CGROUPS = pathlib.Path("/sys/fs/cgroup")
_OWN = pathlib.Path("/proc/self/cgroup")


def host_memory(own: pathlib.Path = _OWN, cgroups: pathlib.Path = _CGROUPS) -> int:
    """Bytes of memory of the host, or less if a container or a batch job is limited to less.

    Linux keeps such limits in control groups
    (https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files). A group's limit
    also applies to the groups in it, so the lowest one counts.

    Args:
      own: File with the groups of this process.
      cgroups: Folder of all groups.
    """
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_limits(own, cgroups)])


def _limits(own: pathlib.Path, cgroups: pathlib.Path) -> list[int]:
    """The limits of the process's groups and of those that contain them."""
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:  # no Linux, or hidden
        return []
    found = []
    for line in lines:
        _, _, names_and_path = line.partition(":")
        names, _, path = names_and_path.partition(":")
        if not names:  # version 2 has one hierarchy without names
            root, file = cgroups, "memory.max"
        elif "memory" in names.split(","):
            root, file = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        # In a container the path may be the host's, and the root then has the limit.
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            found += _limit(folder / file)
    return found


def _limit(file: pathlib.Path) -> list[int]:
    try:
        text = file.read_text("utf-8").strip()
    except OSError:
        return []
    return [int(text)] if text.isdigit() else []  # "max" is no limit
