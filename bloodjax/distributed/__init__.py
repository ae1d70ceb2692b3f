"""Runs of several processes and devices: start, agreement, sharding, preemption, end."""

from bloodjax.distributed.runtime import (
    StopConsensus,
    barrier,
    count,
    exchange,
    from_primary,
    is_primary,
    primary_first,
    process_index,
    propagate_errors,
    publish,
    session,
    sharing_files,
    with_timeout,
)

__all__ = [
    "StopConsensus",
    "barrier",
    "count",
    "exchange",
    "from_primary",
    "is_primary",
    "primary_first",
    "process_index",
    "propagate_errors",
    "publish",
    "session",
    "sharing_files",
    "with_timeout",
]
