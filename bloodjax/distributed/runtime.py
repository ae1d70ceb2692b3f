"""A run of several processes: how it starts, agrees on decisions, and ends.

This is the only module that starts JAX's distributed system. A command runs its body in `session`.
Everything else here does nothing in a run of one process, so callers need not check.

Every process reads all data and computes its own devices' share of every batch. Results for the
whole batch (predictions, sums) have the same bits on every process. Only process 0, the primary
process, writes files. The others read some of them after a `barrier`: either the workdir is a
folder that all share, or each has its own copy of a workdir in a bucket (`sharing_files`).
Decisions that depend on one process's clock, signals or memory go through `exchange`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from bloodjax.distributed import cluster
from bloodjax.errors import Stopped, UserError

T = TypeVar("T")

# JAX's own heartbeat aborts the process, so its timeout is longer than ours by so many seconds.
_JAX_MARGIN = 10.0
_SHUTDOWN_TIMEOUT = 30
# Seconds for all processes to start; those of a pod may start minutes apart.
_START_TIMEOUT = 300
# Seconds between two questions of a loop's processes whether to save or to stop.
_ASK_EVERY = 2.0
# Seconds in which `heartbeat` finds out that an exception is due to the loss of a peer.
_VERDICT_SECONDS = 3.0
# Bytes that each process contributes when they introduce themselves.
_INTRODUCTION_BYTES = 1024

_peers = None
_timeout = 0.0
# What `sharing_files` sets.
_push: Callable[[], None] | None = None
_pull: Callable[[], None] | None = None
_reported: BaseException | None = None


def is_primary() -> bool:
    """Whether this process writes the run's files and logs."""
    return _peers is None or _peers.process == 0


def process_index() -> int:
    """Number of this process among those of the run."""
    return 0 if _peers is None else _peers.process


def count() -> int:
    """Number of processes of the run."""
    return 1 if _peers is None else _peers.count


def exchange(value: Any) -> list[Any]:
    """Returns every process's `value`, in order of process id.

    It waits for the other processes, however late they are. All must call it in the same order.

    Args:
      value: Anything that JSON can represent.
    """
    return [value] if _peers is None else _peers.exchange(value)


def from_primary(function: Callable[[], T]) -> T:
    """Returns the primary process's `function()` on every process; JSON must represent it."""
    return exchange(function() if is_primary() else None)[0]


def barrier() -> None:
    """Waits until all processes are here. Then the others see the files of the primary one."""
    if count() > 1:
        publish()
    exchange(None)
    if not is_primary() and _pull is not None:
        _pull()


@contextlib.contextmanager
def sharing_files(push: Callable[[], None], pull: Callable[[], None]) -> Iterator[None]:
    """In the body, files are copied between processes that share no folder.

    Args:
      push: Copies the primary process's files to where the others read them.
      pull: Copies them from there, in another process.
    """
    global _push, _pull
    outer, (_push, _pull) = (_push, _pull), (push, pull)
    try:
        yield
    finally:
        _push, _pull = outer


def publish() -> None:
    """Copies the primary process's new files to where they outlive it (`sharing_files`)."""
    if is_primary() and _push is not None:
        _push()


def primary_first(function: Callable[[bool], T]) -> T:
    """Returns `function(True)` on the primary process, and then `function(False)` on the others."""
    if is_primary():
        result = function(True)
        barrier()
        return result
    barrier()
    return function(False)


def with_timeout(items: Iterable[T]) -> Iterator[T]:
    """Yields `items`; ends the run if one takes too long, because the other processes wait."""
    if _peers is None:
        yield from items
        return
    iterator = iter(items)
    while True:
        with _peers.with_deadline(_timeout, "waiting for data"):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


class StopConsensus:
    """Agrees across processes, once every second or two, on whether to save or to stop.

    To ask at each call of a loop would make the host wait for the slowest process each time. The
    primary process's clock decides how many calls to skip.
    """

    def __init__(self):
        self._calls, self._interval = 0, 1
        self._asked = time.monotonic()

    def __call__(self, due: bool, signal: int) -> tuple[bool, int]:
        """Returns what all processes do after this call of the loop: save, and stop for a signal.

        Args:
          due: Whether a save is due on this process; the primary process's value counts.
          signal: The signal that this process received, or 0; any process's counts.
        """
        if _peers is None:
            return due, signal
        self._calls += 1
        if self._calls < self._interval:
            return False, 0
        now = time.monotonic()
        seconds = now - self._asked
        interval = self._interval
        if seconds < _ASK_EVERY / 2:
            interval *= 2
        elif seconds > _ASK_EVERY:
            interval = max(1, interval // 2)
        answers = exchange([due, signal, interval])
        self._calls, self._asked, self._interval = 0, now, answers[0][2]
        return answers[0][0], max(answer[1] for answer in answers)


@contextlib.contextmanager
def propagate_errors() -> Iterator[None]:
    """Tells the other processes of an error in the body, before anything is closed because of it.

    Closing may wait for them: all processes write a checkpoint together.
    """
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        _report(error)
        raise


def _report(error: BaseException) -> None:
    """Prints the error and tells the other processes, once."""
    global _reported
    from bloodjax.distributed import heartbeat

    if _peers is None or _reported is error:
        return
    _reported = error
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        _peers.fail(heartbeat.USER_ERROR, f"failed: {error}")
        return
    # If a peer has died, whatever waited for it raises here, and `heartbeat` ends this process.
    time.sleep(_VERDICT_SECONDS)
    traceback.print_exception(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    _peers.fail(heartbeat.PEER_LOST, f"failed: {text[:300]}")


@contextlib.contextmanager
def session(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> Iterator[None]:
    """Runs the body as one of a run's processes, if there are several.

    It must be entered before anything asks JAX for its devices. If the body fails, the process ends
    here with `os._exit`: in Python's orderly shutdown JAX would wait for the other processes.

    Args:
      coordinator: "HOST:PORT" at which process 0 can be reached; None to detect it.
      num_processes: Number of processes; None to detect it.
      process_id: This process's id; None to detect it.
      timeout: Seconds after which a process without heartbeat, or without data, is lost.

    Raises:
      UserError: The three values contradict each other, or are incomplete.
    """
    global _peers, _timeout
    spec = cluster.find(coordinator, num_processes, process_id, os.environ)
    if spec is not None:
        _peers, _timeout = _start(spec, timeout), timeout
    if _peers is None:
        yield
        return
    try:
        yield
    except Stopped:
        _close()
        raise
    except BaseException as error:
        _report(error)
        _leave({UserError: 2, KeyboardInterrupt: 130}.get(type(error), 1))
    else:
        barrier()
        _close()


def _start(spec: cluster.ClusterSpec, timeout: float):
    """Connects the processes; returns None if there turns out to be only one."""
    import jax

    where = f"at {spec.coordinator}" if spec.coordinator else "in the cluster"
    lost = f"the {spec.num_processes or 'several'} processes did not find each other {where}"
    late = threading.Timer(_START_TIMEOUT, _leave, (75, f"{lost} within {_START_TIMEOUT} s"))
    late.daemon = True
    late.start()
    # JAX's preemption service would replace our SIGTERM handler (see preemption.py).
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=spec.coordinator,
            num_processes=spec.num_processes,
            process_id=spec.process_id,
            cluster_detection_method="deactivate" if spec.explicit else None,
            initialization_timeout=_START_TIMEOUT + 30,  # JAX aborts after it
            # Half of it may already have passed when a process is lost.
            heartbeat_timeout_seconds=round(2 * timeout + _JAX_MARGIN),
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT,
        )
    except jax.errors.JaxRuntimeError as error:  # a timeout: another start may succeed
        _leave(75, f"{lost}: {' '.join(str(error).split())[:300]}")
    except (ValueError, RuntimeError) as error:
        if spec == cluster.ClusterSpec():  # a single TPU host that is not part of a pod
            return None
        raise UserError(f"{error}; expected --coordinator=HOST:PORT of process 0") from error
    finally:
        late.cancel()
    return None if jax.process_count() == 1 else _connect(jax, spec, timeout)


def _connect(jax, spec: cluster.ClusterSpec, timeout: float):
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import multihost_utils

    from bloodjax.distributed import heartbeat, sharding, transport

    process, listener, address = jax.process_index(), None, None
    if process == 0:
        listener, address = transport.listen()
        if spec.coordinator:
            address["hosts"].insert(0, spec.coordinator.rpartition(":")[0].strip("[]"))
    introduction = json.dumps({"host": socket.gethostname(), "address": address}).encode()
    # All processes must give arrays of one shape. JSON ignores the spaces.
    padded = np.frombuffer(introduction.ljust(_INTRODUCTION_BYTES), np.uint8)
    places = [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]
    hosts, address = [place["host"] for place in places], places[0]["address"]
    try:
        peers = heartbeat.Peers(process, hosts, address, listener, silence=timeout)
    except OSError as error:
        _leave(75, f"process {process}: no connection with the others: {error}")
    # On CPU the first sum over a set of devices fails if a process is 30 s later than the others,
    # for example because it compiles longer. Later sums wait without a limit.
    peers.exchange(None)
    devices = sharding.by_batch(sharding.mesh())
    jax.block_until_ready(
        jax.jit(jnp.sum)(sharding.put(np.zeros(jax.device_count(), np.float32), devices))
    )
    return peers


def _close() -> None:
    global _peers
    import jax

    peers, _peers = _peers, None
    peers.close()
    jax.distributed.shutdown()


def _leave(status: int, message: str = "") -> None:
    if message:
        print(message, file=sys.stderr)
    if _peers is not None:
        _peers.drain()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
