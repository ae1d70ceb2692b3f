"""A run of several processes: their start, what they decide together, and their end.

The one place that starts JAX's distributed system. A command runs its body in `session`; everything
else here does nothing where there is one process, so that callers need not ask.

Each process reads all data and takes its own devices' share of every batch; what is computed for
all (predictions, sums) comes out on every process with the same bits. Files, but for checkpoints,
are written by the primary process, number 0, alone: the workdir must be a folder that all share.
Decisions that depend on one process's clock, signals or memory go through `exchange`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from bloodjax.distributed import cluster
from bloodjax.errors import Stopped, UserError

T = TypeVar("T")

# Of jax's own watch, beyond ours: it ends processes by an abort, and should not be the first.
_JAX_LATER = 10.0
_SHUTDOWN = 30
# For all processes to come, in seconds: those of a pod may start minutes apart.
_FIND = 300
# How far apart, in seconds, a loop's processes ask one another whether to save or to stop.
_ASK_EVERY = 2.0
# For the watch over the peers to find out that an exception came from the loss of one.
_VERDICT = 3.0
_LONGEST = 1024  # bytes of the primary's address

_peers = None
_timeout = 0.0
_told: BaseException | None = None


def is_primary() -> bool:
    """Whether this process writes the run's files and says what the run has to say."""
    return _peers is None or _peers.process == 0


def count() -> int:
    """How many processes the run has."""
    return 1 if _peers is None else _peers.count


def exchange(value: Any) -> list[Any]:
    """Each process's `value`, anything that JSON holds; all must call it in the same order."""
    return [value] if _peers is None else _peers.exchange(value)


def barrier() -> None:
    """Waits until all processes are here."""
    exchange(None)


def primary_first(function: Callable[[bool], T]) -> T:
    """`function(True)` on the primary process; after that `function(False)` on the others."""
    if is_primary():
        result = function(True)
        barrier()
        return result
    barrier()
    return function(False)


def with_timeout(items: Iterable[T]) -> Iterator[T]:
    """`items`; where one does not come in time, the run ends, for the other processes wait."""
    if _peers is None:
        yield from items
        return
    iterator = iter(items)
    while True:
        with _peers.within(_timeout, "waiting for its data"):
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


class StopConsensus:
    """Whether to save and to stop, asked at each call of a loop and answered alike everywhere.

    To ask the others at each call would make the host wait for them; the primary's clock says
    after how many calls to ask again, so that one to two seconds lie between.
    """

    def __init__(self):
        self._calls, self._pause = 0, 1
        self._asked = time.monotonic()

    def __call__(self, due: bool, signal: int) -> tuple[bool, int]:
        """What all do after this call of the loop.

        Args:
          due: whether this process finds a save due; the primary's word counts.
          signal: the signal that this process got, or 0; anyone's counts.
        """
        if _peers is None:
            return due, signal
        self._calls += 1
        if self._calls < self._pause:
            return False, 0
        now = time.monotonic()
        seconds = now - self._asked
        pause = self._pause
        if seconds < _ASK_EVERY / 2:
            pause *= 2
        elif seconds > _ASK_EVERY:
            pause = max(1, pause // 2)
        answers = exchange([due, signal, pause])
        self._calls, self._asked, self._pause = 0, now, answers[0][2]
        return answers[0][0], max(answer[1] for answer in answers)


@contextlib.contextmanager
def propagate_errors() -> Iterator[None]:
    """Tells the other processes of an error in the body before anything is closed because of it.

    Closing may wait for them, for a checkpoint under way is written by all.
    """
    try:
        yield
    except Stopped:
        raise
    except BaseException as error:
        _tell(error)
        raise


def _tell(error: BaseException) -> None:
    """Prints the error and tells the other processes, once."""
    global _told
    from bloodjax.distributed import heartbeat

    if _peers is None or _told is error:
        return
    _told = error
    if isinstance(error, UserError):
        print(f"error: {error}", file=sys.stderr, flush=True)
        _peers.fail(heartbeat.MISTAKE, f"failed: {error}")
        return
    # Where a peer has died, whatever waited for it raises here; the watch then ends this process.
    time.sleep(_VERDICT)
    traceback.print_exception(error)
    text = " ".join(f"{type(error).__name__}: {error}".split())
    _peers.fail(heartbeat.LOST, f"failed: {text[:300]}")


@contextlib.contextmanager
def session(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: float
) -> Iterator[None]:
    """Runs the body as one of a run's processes, where there are several.

    Must be entered before anything asks JAX for its devices. Where the body fails, the process
    ends here: at Python's orderly end JAX would wait for the others.

    Args:
      coordinator: "HOST:PORT" at which process 0 can be reached; None where detected.
      num_processes: how many there are; None where detected.
      process_id: which one this is; None where detected.
      timeout: seconds after which a process without a sign, or without data, is lost.

    Raises:
      UserError: the three do not make sense.
    """
    global _peers, _timeout
    found = cluster.find(coordinator, num_processes, process_id, os.environ)
    if found is not None:
        _peers, _timeout = _start(found, timeout), timeout
    if _peers is None:
        yield
        return
    try:
        yield
    except Stopped:
        _close()
        raise
    except BaseException as error:
        _tell(error)
        _leave({UserError: 2, KeyboardInterrupt: 130}.get(type(error), 1))
    else:
        barrier()
        _close()


def _start(found: cluster.ClusterSpec, timeout: float):
    """Connects the processes; None where it turns out that there is one only."""
    import jax

    where = f"at {found.coordinator}" if found.coordinator else "in the cluster"
    lost = f"the {found.num_processes or 'several'} processes did not find each other {where}"
    late = threading.Timer(_FIND, _leave, (75, f"{lost} within {_FIND} s"))
    late.daemon = True
    late.start()
    # Its handler would take the place of ours, and the run's own way to stop is enough.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=found.coordinator,
            num_processes=found.num_processes,
            process_id=found.process_id,
            cluster_detection_method="deactivate" if found.explicit else None,
            initialization_timeout=_FIND + 30,  # it aborts then
            # Half of it may have passed already when a process is lost.
            heartbeat_timeout_seconds=round(2 * timeout + _JAX_LATER),
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except jax.errors.JaxRuntimeError as error:  # in time: a restart may find them all
        _leave(75, f"{lost}: {' '.join(str(error).split())[:300]}")
    except (ValueError, RuntimeError) as error:
        if found == cluster.ClusterSpec():  # a TPU of one host, that belongs to nothing larger
            return None
        raise UserError(f"{error}; expected --coordinator=HOST:PORT of process 0") from error
    finally:
        late.cancel()
    return None if jax.process_count() == 1 else _connect(jax, found, timeout)


def _connect(jax, found: cluster.ClusterSpec, timeout: float):
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import multihost_utils

    from bloodjax.distributed import heartbeat, sharding, transport

    process, door, text = jax.process_index(), None, b""
    if process == 0:
        door, address = transport.listen()
        if found.coordinator:
            address["hosts"].insert(0, found.coordinator.rpartition(":")[0].strip("[]"))
        text = json.dumps(address).encode()
    content = np.frombuffer(text.ljust(_LONGEST), np.uint8).astype(np.int32)
    content = np.asarray(multihost_utils.broadcast_one_to_all(content)).astype(np.uint8)
    address = json.loads(content.tobytes())
    try:
        found = heartbeat.Peers(process, jax.process_count(), address, door, silence=timeout)
    except OSError as error:
        _leave(75, f"process {process}: no connection with the others: {error}")
    # On CPU the first sum over a set of devices fails where a process comes to it 30 s after the
    # others, as one that compiles longer would; later ones wait for however long.
    found.exchange(None)
    devices = sharding.by_batch(sharding.mesh())
    jax.block_until_ready(
        jax.jit(jnp.sum)(sharding.put(np.zeros(jax.device_count(), np.float32), devices))
    )
    return found


def _close() -> None:
    global _peers
    import jax

    found, _peers = _peers, None
    found.close()
    jax.distributed.shutdown()


def _leave(status: int, message: str = "") -> None:
    if message:
        print(message, file=sys.stderr)
    if _peers is not None:
        _peers.linger()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
