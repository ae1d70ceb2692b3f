"""Where a run stands, besides its state: what early stopping and the choice of the best go by."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from typing import Any


@dataclasses.dataclass(frozen=True)
class RunProgress:
    """Where a run stands, besides its state.

    Attributes:
      classes: class names in label order.
      phase: index of the present phase.
      phase_epochs: epochs completed in it.
      waited: of these, the last ones without a better value of early stopping's metric.
      phase_best: the phase's best value so far, or None.
      best: the run's best value so far, or None.
      best_step: the step at which the run's best value was measured, or None.
      source: terms of the initial weights, as `pretrained.pretrained_cfg.PretrainedCfg` has them; {} for
        random ones.
      leaders: step and value of the best epochs so far, the best first, as many as are to be kept.
      trained: whether the epoch after `phase_epochs` is trained to its end, but not validated yet.
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
    trained: bool = False

    def after_epoch(
        self, value: float | None, larger_is_better: bool, step: int, keep: int = 0
    ) -> RunProgress:
        """The progress after an epoch that ended at `step` with `value` of the metric.

        `keep` is how many of the best epochs are `leaders`; of equal ones, the earlier is better.
        Without a value, as there is without a validation part, no epoch is better than another.
        """
        after = dataclasses.replace(self, phase_epochs=self.phase_epochs + 1, trained=False)
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

    def next_phase(self) -> RunProgress:
        """The progress at the start of the phase that follows."""
        return dataclasses.replace(
            self, phase=self.phase + 1, phase_epochs=0, waited=0, phase_best=None
        )

    @property
    def needs(self) -> set[int]:
        """The steps whose checkpoints a run that stands here may go back to."""
        return {self.best_step, *(step for step, _ in self.leaders)} - {None}

    def without(self, lost: Set[int]) -> RunProgress:
        """The progress of a run that has lost the checkpoints of these steps.

        The best is the best leader that is left; where there is none, the next epoch's will be.
        """
        leaders = tuple(leader for leader in self.leaders if leader[0] not in lost)
        progress = dataclasses.replace(self, leaders=leaders)
        if self.best_step not in lost:
            return progress
        best_step, best = leaders[0] if leaders else (None, None)
        return dataclasses.replace(progress, best_step=best_step, best=best)
