"""Checkpoints: the latest and the best, each with the run's progress. The one door to orbax."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence, Set
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from bloodjax import distributed
from bloodjax.checkpoints import integrity
from bloodjax.checkpoints.progress import RunProgress
from bloodjax.checkpoints.state import TrainState
from bloodjax.checkpoints.store import FORMAT, CheckpointStore
from bloodjax.cli import console
from bloodjax.distributed import sharding
from bloodjax.errors import Stopped, UserError
from bloodjax.io.files import disk_full_reason


class Checkpoints:
    """The checkpoints in one folder; use as a context manager, so that writing is completed.

    Kept are the latest two, and what the progress of each of these needs, so that there is always
    something to go back to: a checkpoint that is not whole (see `store`) counts as not there, and
    the latest is the newest that is whole.
    """

    def __init__(self, directory: pathlib.Path, *, read_only: bool = False):
        """Opens `directory`, which need not exist; it is made with the first checkpoint.

        Raises:
          UserError: the newest checkpoint is of another version's format, or may not be read.
        """
        self._directory = directory.resolve()
        # Of several processes the primary one moves what is broken, before the others look.
        self._stored = CheckpointStore(
            self._directory, read_only=read_only or not distributed.is_primary()
        )
        self._keep = _LatestTwoAndThese()
        self._manager: ocp.CheckpointManager | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checksums")
        self._sealing: concurrent.futures.Future | None = None
        self._progress: RunProgress | None = None
        self._latest = self._proven = self._look()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind, *_) -> None:
        # Waits: a process that ends before that loses the checkpoint. What went wrong first counts;
        # that the run was stopped is not wrong, and its last checkpoint is what matters then.
        with contextlib.ExitStack() as stack:
            if kind not in (None, Stopped):
                stack.enter_context(contextlib.suppress(Exception))
            stack.callback(self._thread.shutdown)
            if self._manager is not None:
                stack.callback(self._close_manager)
            self.wait()

    def _close_manager(self) -> None:
        with contextlib.suppress(Exception):  # `wait` has raised it
            self._manager.close()

    @property
    def directory(self) -> pathlib.Path:
        """The folder."""
        return self._directory

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, or None where there is none."""
        return self._latest

    @property
    def last_committed_step(self) -> int | None:
        """The latest step that is written to its end, or None; the latest may be under way."""
        return self._proven

    def latest_before(self, step: int) -> int | None:
        """The step of the latest checkpoint from before `step`, or None where there is none."""
        self.wait()
        return self._stored.latest(before=step)

    def drop_after(self, step: int | None) -> None:
        """Deletes the checkpoints of later steps than `step`, or all of them.

        `step` is one that is kept; it is the latest then.
        """
        self.wait()
        if self._manager is None:
            self._manager = self._new_manager()
        for kept in self._manager.all_steps():
            if step is None or kept > step:
                self._manager.delete(kept)
        self._progress = None
        self._latest = self._proven = self._look()

    def _look(self) -> int | None:
        return distributed.primary_first(lambda _: self._stored.latest())

    def save(self, state: TrainState, progress: RunProgress) -> None:
        """Writes a checkpoint in the background, and its checksums once it is complete.

        One of the same step is replaced where its progress is another, and else left as it is.

        Raises:
          UserError: the disk took no more, now or at the checkpoint before.
        """
        step = int(state.step)
        self.wait()
        if step == self._latest and progress == self._progress:
            return
        with self._room_for(step):
            if self._manager is None:
                self._manager = self._new_manager()
            if step == self._latest:
                self._manager.delete(step)
            self._keep.steps = progress.needs | (self._progress.needs if self._progress else set())
            bad_step = int(state.metrics.bad_step)
            if bad_step >= 0:  # the run may have to go back to where it still was good
                self._keep.steps |= {self._stored.latest(before=bad_step)} - {None}
            written = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_fields(state)),
                    progress=ocp.args.JsonSave({"format": FORMAT, **dataclasses.asdict(progress)}),
                ),
            )
        if not written:  # as orbax answers, without a word, where there is a later step
            raise RuntimeError(f"{self.directory}: step {step} was not written")
        self._latest, self._progress = step, progress
        self._stored.written(step)
        self._sealing = self._thread.submit(self._finalize, step)

    def wait(self) -> None:
        """Waits until the checkpoint under way is complete and has its checksums.

        Raises:
          UserError: the disk took no more.
        """
        if self._sealing is not None:
            sealing, self._sealing = self._sealing, None
            sealing.result()

    def _finalize(self, step: int) -> None:
        with self._room_for(step):
            self._manager.wait_until_finished()
            if distributed.is_primary():
                integrity.write(self._stored.folder(step))
        self._proven = step

    @contextlib.contextmanager
    def _room_for(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            why = disk_full_reason(error)
            if why is None:
                raise
            good = f"the last good one is of step {self._proven}"
            raise UserError(
                f"{self.directory}: the checkpoint of step {step} could not be written: {why}; "
                f"{'there is none before it' if self._proven is None else good}; expected room for "
                "it, with which the same command goes on"
            ) from error

    def _new_manager(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                # A killed process leaves a checkpoint half-written.
                preservation_policy=self._keep,
                cleanup_tmp_directories=True,
            ),
            item_names=("state", "progress"),
        )

    def progress(self) -> RunProgress:
        """The progress that the latest checkpoint holds, as far as the others are still there.

        Where the best one is not, that is said, and the best that is left takes its place.
        """
        if self._progress is None:
            stored = self._stored.progress(self._latest)
            leaders = tuple((step, value) for step, value in stored.get("leaders", ()))
            held = RunProgress(
                **{**stored, "classes": tuple(stored["classes"]), "leaders": leaders}
            )
            lost = {step for step in held.needs if not self._stored.is_valid(step)}
            self._progress = held.without(lost)
            if held.best_step in lost:
                left = self._progress.best_step or self._latest
                console.log_info(
                    f"{self.directory}: the best checkpoint, of step {held.best_step}, is lost; "
                    f"that of step {left} takes its place"
                )
        return self._progress

    def restore(
        self, step: int, like: TrainState, layout: sharding.Layout | None = None
    ) -> TrainState:
        """The state at `step`.

        Args:
          step: one that is kept.
          like: has its shapes and dtypes.
          layout: how the arrays come to lie on the devices, no matter how they lay when they were
            saved; by default on one device, or of several processes on each one's all.

        Raises:
          UserError: there is no whole checkpoint of this step.
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
        """The network's variables at `step`, without what else the state holds.

        Args:
          step: one that is kept.
          like: `{"params": ..., "batch_stats": ...}` of the same shapes and dtypes.
          ema: their average, which the run must have kept.
          layout: how they come to lie on the devices; see `restore`.

        Raises:
          UserError: there is no whole checkpoint of this step.
        """
        if ema:
            return self._restore(step, {"ema": like}, layout, partial=True)["ema"]
        return self._restore(step, like, layout, partial=True)

    def _restore(self, step: int, like: PyTree, layout, partial: bool) -> PyTree:
        self.wait()
        if not self._stored.is_valid(step):
            raise UserError(f"{self.directory}: no checkpoint of step {step} is here and whole")
        places = sharding.simplest(like) if layout is None else layout.of(like)
        target = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like, places
        )
        into = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding), target)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(
                self._stored.folder(step) / "state",
                args=ocp.args.PyTreeRestore(target, restore_args=into, partial_restore=partial),
            )


def _fields(state: TrainState) -> dict[str, PyTree]:
    """The state's fields by name, without those that are None: runs without them stay readable."""
    return {name: field for name, field in vars(state).items() if field is not None}


@dataclasses.dataclass
class _LatestTwoAndThese(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the latest two checkpoints and the run's best ones.

    Orbax's own BestN breaks ties its own way; which checkpoints are best is the run's to say.
    """

    steps: Set[int] = frozenset()

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: ocp.checkpoint_managers.PreservationContext
    ) -> Sequence[bool]:
        """One answer for each checkpoint, in order of their steps."""
        del context
        latest = sorted(c.step for c in checkpoints)[-2:]
        return [c.step in latest or c.step in self.steps for c in checkpoints]
