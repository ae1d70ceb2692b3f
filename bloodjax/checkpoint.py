"""Checkpoints: the latest and the best, each with the run's progress. The one door to orbax."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from bloodjax import sharding
from bloodjax.errors import UserError
from bloodjax.state import TrainState


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands, besides its state.

    Attributes:
      classes: class names in label order.
      phase: index of the present phase.
      phase_epochs: epochs completed in it.
      waited: of these, the last ones without a better value of early stopping's metric.
      phase_best: the phase's best value so far, or None.
      best: the run's best value so far, or None.
      best_step: the step at which the run's best value was measured, or None.
      source: terms of the initial weights, as `pretrained.catalogue.Source` has them; {} for
        random ones.
      leaders: step and value of the best epochs so far, the best first, as many as are to be kept.
    """

    classes: tuple[str, ...]
    phase: int = 0
    phase_epochs: int = 0
    waited: int = 0
    phase_best: float | None = None
    best: float | None = None
    best_step: int | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    leaders: tuple[tuple[int, float], ...] = ()

    def after_epoch(
        self, value: float | None, larger_is_better: bool, step: int, keep: int = 0
    ) -> Progress:
        """The progress after an epoch that ended at `step` with `value` of the metric.

        `keep` is how many of the best epochs are `leaders`; of equal ones, the earlier is better.
        Without a value, as there is without a validation part, no epoch is better than another.
        """
        after = dataclasses.replace(self, phase_epochs=self.phase_epochs + 1)
        if value is None:
            return after

        def improves(old: float | None) -> bool:
            return old is None or (value > old if larger_is_better else value < old)

        if improves(self.phase_best):
            after = dataclasses.replace(after, phase_best=value, waited=0)
        else:
            after = dataclasses.replace(after, waited=self.waited + 1)
        if improves(self.best):
            after = dataclasses.replace(after, best=value, best_step=step)
        sign = -1 if larger_is_better else 1
        leaders = sorted((*self.leaders, (step, value)), key=lambda leader: sign * leader[1])
        return dataclasses.replace(after, leaders=tuple(leaders[:keep]))

    def next_phase(self) -> Progress:
        """The progress at the start of the phase that follows."""
        return dataclasses.replace(
            self, phase=self.phase + 1, phase_epochs=0, waited=0, phase_best=None
        )


class Checkpoints:
    """The checkpoints in one folder; use as a context manager, so that writing is completed."""

    def __init__(self, directory: pathlib.Path, *, read_only: bool = False):
        self._keep = _LatestAndThese()
        self._manager = ocp.CheckpointManager(
            directory.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._keep, create=not read_only, read_only=read_only
            ),
            item_names=("state", "progress"),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()  # waits: a process that ends before that loses the checkpoint

    @property
    def directory(self) -> pathlib.Path:
        """The folder."""
        return pathlib.Path(self._manager.directory)

    @property
    def latest_step(self) -> int | None:
        """The step of the latest checkpoint, or None where there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, progress: Progress) -> None:
        """Writes a checkpoint in the background; one of the same step is left as it is."""
        step = int(state.step)
        self._keep.steps = {progress.best_step, *(step for step, _ in progress.leaders)}
        if step != self.latest_step:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(_fields(state)),
                    progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
                ),
            )

    def progress(self) -> Progress:
        """The progress that the latest checkpoint holds."""
        step = self.latest_step
        stored = self._manager.restore(
            step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
        ).progress
        leaders = tuple((step, value) for step, value in stored.get("leaders", ()))
        return Progress(**{**stored, "classes": tuple(stored["classes"]), "leaders": leaders})

    def restore(
        self, step: int, like: TrainState, layout: sharding.Layout | None = None
    ) -> TrainState:
        """The state at `step`; `like` has its shapes and dtypes.

        Without a `layout` it comes on one device; of several processes, on each one's all.
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
        """The network's variables at `step`.

        Args:
          step: one that is kept.
          like: `{"params": ..., "batch_stats": ...}` of the same shapes and dtypes.
          ema: their average, which the run must have kept.
          layout: how they come to lie on the devices; see `restore`.
        """
        if ema:
            return self._restore(step, {"ema": like}, layout, partial=True)["ema"]
        return self._restore(step, like, layout, partial=True)

    def _restore(self, step: int, like: PyTree, layout, partial: bool) -> PyTree:
        self._manager.wait_until_finished()
        if step not in self._manager.all_steps():
            raise UserError(f"{self.directory}: no checkpoint of step {step} is here")
        places = sharding.simplest(like) if layout is None else layout.of(like)
        target = jax.tree.map(
            lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), like, places
        )
        placed = jax.tree.map(lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding), target)
        state = ocp.args.PyTreeRestore(target, restore_args=placed, partial_restore=partial)
        return self._manager.restore(step, args=ocp.args.Composite(state=state)).state


def _fields(state: TrainState) -> dict[str, PyTree]:
    """The state's fields by name, without those that are None: runs without them stay readable."""
    return {name: field for name, field in vars(state).items() if field is not None}


def has_checkpoint(directory: pathlib.Path) -> bool:
    """Whether a run can go on from what is in `directory`, a folder that need not exist."""
    if not directory.is_dir():
        return False
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.latest_step is not None


@dataclasses.dataclass
class _LatestAndThese(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the latest checkpoint and the run's best ones.

    Orbax's own BestN breaks ties its own way; which checkpoints are best is the run's to say.
    """

    steps: Set[int | None] = frozenset()

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: ocp.checkpoint_managers.PreservationContext
    ) -> Sequence[bool]:
        """One answer for each checkpoint, in order of their steps."""
        del context
        latest = max((c.step for c in checkpoints), default=None)
        return [c.step == latest or c.step in self.steps for c in checkpoints]
