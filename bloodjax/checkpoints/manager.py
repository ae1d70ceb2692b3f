"""Saves and restores checkpoints, and decides which are kept. The only module with orbax."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence, Set
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint import checkpoint_managers as preservation

from bloodjax import distributed
from bloodjax.checkpoints import integrity
from bloodjax.checkpoints.alias import plain_path
from bloodjax.checkpoints.integrity import FORMAT, CheckpointStore
from bloodjax.checkpoints.state import RunProgress, TrainState
from bloodjax.cli import console
from bloodjax.distributed import sharding
from bloodjax.errors import Stopped, UserError, handling_ignored
from bloodjax.io.files import disk_full_reason

# Of several processes, only the primary one calls orbax, which must not wait for the others.
_ALONE = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})


class Checkpoints:
    """The checkpoints in one folder. A context manager, whose end waits for the last write.

    It keeps the latest two checkpoints and those that the progress of each of these needs, so that
    an earlier one can replace a corrupt one. A corrupt checkpoint (see `integrity`) counts as
    missing; the latest is the newest valid one.

    In a run of several processes, only the primary one needs the folder: it writes what all have,
    and the others receive what it reads. All processes must call the methods in the same order.
    """

    def __init__(self, directory: pathlib.Path, *, read_only: bool = False):
        """Finds the latest checkpoint.

        Args:
          directory: Folder of the checkpoints. It is created with the first one.
          read_only: Whether corrupt checkpoints stay where they are.

        Raises:
          UserError: The newest checkpoint has a later format, or may not be read; or orbax cannot
            write to this path.
        """
        self._directory = directory.resolve()
        self._link = contextlib.ExitStack()
        if distributed.is_primary():
            # Made at once, so that a path that does not work is known before the first step.
            self._path_for_orbax = self._link.enter_context(plain_path(self._directory))
        moves = not read_only and distributed.is_primary()
        self._store = CheckpointStore(self._directory, read_only=not moves)
        self._needed = _Needed()
        self._link.enter_context(handling_ignored(_is_of_a_failed_write))
        self._manager: ocp.CheckpointManager | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checksums")
        self._finalizing: concurrent.futures.Future | None = None
        self._progress: RunProgress | None = None
        self._latest = self._committed = self._find_latest()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *_) -> None:
        # A process that ends before the last write does loses it. The first error counts; that the
        # run was stopped is none, because its last checkpoint is what matters then.
        with contextlib.ExitStack() as stack:
            if kind not in (None, Stopped):
                stack.enter_context(contextlib.suppress(Exception))
            stack.callback(self._link.close)
            stack.callback(self._thread.shutdown)
            if self._manager is not None:
                stack.callback(self._close_manager)
            self.wait()

    def _close_manager(self) -> None:
        with contextlib.suppress(Exception):  # `wait` has raised it
            self._manager.close()

    @property
    def directory(self) -> pathlib.Path:
        """Folder of the checkpoints."""
        return self._directory

    @property
    def latest_step(self) -> int | None:
        """Step of the latest checkpoint, which may still be in writing; or None."""
        return self._latest

    @property
    def last_committed_step(self) -> int | None:
        """Step of the latest checkpoint that is completely written; or None."""
        return self._committed

    def latest_before(self, step: int) -> int | None:
        """Step of the latest checkpoint from before `step`; or None."""
        self.wait()
        return distributed.from_primary(lambda: self._store.latest(before=step))

    def drop_after(self, step: int | None) -> None:
        """Deletes the checkpoints after `step`, which becomes the latest; all of them if None."""
        self.wait()
        if distributed.is_primary():
            if self._manager is None:
                self._manager = self._new_manager()
            for kept in self._manager.all_steps():
                if step is None or kept > step:
                    self._manager.delete(kept)
            distributed.publish()
        self._progress = None
        self._latest = self._committed = self._find_latest()

    def _find_latest(self) -> int | None:
        return distributed.from_primary(self._store.latest)

    def save(self, state: TrainState, progress: RunProgress) -> None:
        """Writes a checkpoint in the background, and its checksums when it is complete.

        If the latest checkpoint has the same step, it is replaced if its progress differs, and
        otherwise left as it is.

        Args:
          state: State, on the devices.
          progress: Progress of the run.

        Raises:
          UserError: The disk is full, now or for the checkpoint before, or that one cannot be
            read.
        """
        step = int(state.step)
        self.wait()
        distributed.exchange(None)  # in several processes, the primary one has waited
        self._committed = self._latest
        if step == self._latest and progress == self._progress:
            return
        if distributed.count() > 1:
            state = sharding.gather(state)
        if distributed.is_primary():
            self._write(step, state, progress)
        self._latest, self._progress = step, progress

    def _write(self, step: int, state: TrainState, progress: RunProgress) -> None:
        with self._explain_full_disk(step):
            if step == self._latest:
                self._store.set_aside(step)
            if self._manager is None:
                self._manager = self._new_manager()
            elif step == self._latest:
                self._manager.reload()
            needed = progress.needs | (self._progress.needs if self._progress else set())
            bad_step = int(state.metrics.bad_step)
            if bad_step >= 0:  # the run may have to roll back to before the bad steps
                needed |= {self._store.latest(before=bad_step)} - {None}
            self._needed.steps = needed
            written = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_fields(state)),
                    progress=ocp.args.JsonSave({"format": FORMAT, **dataclasses.asdict(progress)}),
                ),
            )
        if not written:  # orbax returns False if there is a later step
            raise RuntimeError(f"{self.directory}: step {step} was not written")
        self._store.written(step)
        self._finalizing = self._thread.submit(self._finalize, step)

    def wait(self) -> None:
        """Waits until the checkpoint in writing is complete and has its checksums.

        If the workdir is in a bucket, the checkpoint is complete when it is there.

        Raises:
          UserError: The disk is full, or the checkpoint cannot be read.
        """
        if self._finalizing is not None:
            finalizing, self._finalizing = self._finalizing, None
            finalizing.result()

    def _finalize(self, step: int) -> None:
        with self._explain_full_disk(step):
            self._manager.wait_until_finished()
            self._check_readable(step)
            integrity.write(self._store.folder(step))
            self._store.replaced()
        distributed.publish()
        self._committed = step

    def _check_readable(self, step: int) -> None:
        """Reads one number of the checkpoint that was written, which needs its index as well.

        Raises:
          UserError: It cannot be read, or is another number.
        """
        as_numpy = {"step": ocp.RestoreArgs(restore_type=np.ndarray)}
        try:
            found = self._read(step, {"step": np.int32(0)}, as_numpy, partial=True)
            reason = "" if found["step"] == step else f"its step is {found['step']}"
        except Exception as error:  # of whatever type orbax or tensorstore raises
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        if reason:
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} was written but cannot be read "
                f"({reason}); {self._last_good()}; expected another --workdir, or a file system "
                "that keeps what is written to it"
            )

    def _last_good(self) -> str:
        if self._committed is None:
            return "there is none before it"
        return f"the last good one is of step {self._committed}"

    @contextlib.contextmanager
    def _explain_full_disk(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = disk_full_reason(error)
            if reason is None:
                raise
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} could not be written: {reason}; "
                f"{self._last_good()}; expected space on the disk, with which the same command "
                "resumes"
            ) from error

    def _new_manager(self) -> ocp.CheckpointManager:
        self._directory.mkdir(parents=True, exist_ok=True)  # orbax cannot through a link
        return ocp.CheckpointManager(
            self._path_for_orbax,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation.AnyPreservationPolicy(
                    [preservation.LatestN(2), self._needed]
                ),
                # A killed process leaves a checkpoint half-written.
                cleanup_tmp_directories=True,
                create=False,  # orbax creates no folder for one of several processes
                multiprocessing_options=_ALONE,
            ),
            item_names=("state", "progress"),
        )

    def progress(self) -> RunProgress:
        """The progress of the latest checkpoint, without checkpoints that are lost.

        If the best checkpoint is lost, that is logged, and the best one that is left replaces it.
        """
        if self._progress is None:
            self._progress = RunProgress.from_json(distributed.from_primary(self._read_progress))
        return self._progress

    def _read_progress(self) -> dict[str, Any]:
        stored = RunProgress.from_json(self._store.progress(self._latest))
        lost = {step for step in stored.needs if not self._store.is_valid(step)}
        progress = stored.without(lost)
        if stored.best_step in lost:
            console.log_info(
                f"{self.directory}: the best checkpoint, of step {stored.best_step}, is lost; "
                f"the one of step {progress.best_step or self._latest} takes its place"
            )
        return dataclasses.asdict(progress)

    def restore(
        self, step: int, like: TrainState, layout: sharding.Layout | None = None
    ) -> TrainState:
        """Restores the state at `step`.

        Args:
          step: Step of a checkpoint.
          like: State of the same shapes and dtypes.
          layout: Target sharding; it need not be the one that was saved. By default the state is
            put on one device, or replicated in a run of several processes.

        Raises:
          UserError: There is no valid checkpoint of this step.
        """
        return TrainState(**self._restore(step, _fields(like), layout, partial=False))

    def restore_variables(
        self,
        step: int,
        like: PyTree,
        *,
        ema: bool = False,
        layout: sharding.Layout | None = None,
    ) -> PyTree:
        """Restores the network's variables at `step`, and nothing else of the state.

        Args:
          step: Step of a checkpoint.
          like: `{"params": ..., "batch_stats": ...}` of the same shapes and dtypes.
          ema: Whether to restore their average, which the run must have kept.
          layout: Target sharding; see `restore`.

        Raises:
          UserError: There is no valid checkpoint of this step.
        """
        if ema:
            return self._restore(step, {"ema": like}, layout, partial=True)["ema"]
        return self._restore(step, like, layout, partial=True)

    def _restore(self, step: int, like: PyTree, layout, partial: bool) -> PyTree:
        self.wait()
        if not distributed.from_primary(lambda: self._store.is_valid(step)):
            raise UserError(f"{self.directory}: there is no valid checkpoint of step {step}")
        shardings = sharding.default_shardings(like) if layout is None else layout.of(like)
        if distributed.count() == 1:
            placed = jax.tree.map(lambda place: ocp.ArrayRestoreArgs(sharding=place), shardings)
            return self._read(step, like, placed, partial)
        full = None
        if distributed.is_primary():
            as_numpy = jax.tree.map(
                lambda x: ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype), like
            )
            full = self._read(step, like, as_numpy, partial)
        return sharding.put(sharding.broadcast(full, like), shardings)

    def _read(self, step: int, like: PyTree, restore_args: PyTree, partial: bool) -> PyTree:
        """Reads the arrays of `like`, or all of the state's unless `partial`."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
        args = ocp.args.PyTreeRestore(shapes, restore_args=restore_args, partial_restore=partial)
        handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_ALONE)
        with ocp.Checkpointer(handler, multiprocessing_options=_ALONE) as reader:
            return reader.restore(self._path_for_orbax / str(step) / "state", args=args)


def _is_of_a_failed_write(error: BaseException | None) -> bool:
    """Whether a write ended after another one had failed.

    Of several arrays, orbax waits until the first write fails, and closes its event loop. Those
    that end later have nobody to tell, and Python would print a traceback for each.
    """
    return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"


def _fields(state: TrainState) -> dict[str, PyTree]:
    """The state's fields by name, except those that are None, which older checkpoints lack."""
    return {name: field for name, field in vars(state).items() if field is not None}


@dataclasses.dataclass
class _Needed(preservation.PreservationPolicy):
    """Keeps the checkpoints that the run's progress names.

    Orbax's BestN would break ties in its own way, but the run decides which checkpoints are best.
    """

    steps: Set[int] = frozenset()

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: preservation.PreservationContext
    ) -> Sequence[bool]:
        """Whether to keep each of `checkpoints`."""
        del context
        return [checkpoint.step in self.steps for checkpoint in checkpoints]
