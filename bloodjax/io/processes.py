"""Which process wrote a lock, so that another one can tell whether it is still alive."""

from __future__ import annotations

import os
import pathlib
from typing import Any


def identity(number: int) -> list[Any] | None:
    """Machine, id and time of start of a process that is alive, for JSON.

    Host names and process ids of two containers may be the same, so the machine is recognised by
    its boot and by the namespace of its process ids.

    Args:
      number: Id of a process of this machine.

    Returns:
      None if there is no such process, it has ended, or the system does not say: only Linux does.
    """
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
        namespace = os.readlink("/proc/self/ns/pid")
        fields = pathlib.Path(f"/proc/{number}/stat").read_text("utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":  # it has ended, but its parent has not noticed
        return None
    return [f"{boot} {namespace}", number, fields[19]]


def is_alive(known: Any) -> bool | None:
    """Whether a process is alive.

    Args:
      known: Its `identity`, as read from JSON; may be anything.

    Returns:
      None if it was a process of another machine, or `known` is no identity.
    """
    ours = identity(os.getpid())
    try:
        machine, number, _ = known
        if ours is None or machine != ours[0]:
            return None
        return identity(int(number)) == known
    except (TypeError, ValueError):
        return None
