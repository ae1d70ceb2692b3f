"""Training, from top to bottom: set up -> restore -> loop -> evaluate.

One run lives in one workdir. A checkpoint needs the state and the `RunProgress` alone: the order of
the images is a function of (seed, epoch) and everything random one of (seed, step), so a run that
was stopped goes on as if it had not been.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import pathlib
import statistics
import time
from typing import Any

import jax
from jaxtyping import PyTree

from bloodjax import distributed, metrics
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.progress import RunProgress
from bloodjax.checkpoints.state import Metrics, TrainState
from bloodjax.cli import console
from bloodjax.config import PHASES
from bloodjax.config.validation import METRICS, WATCHED
from bloodjax.data.dataset import Dataset
from bloodjax.distributed.preemption import ShutdownRequest
from bloodjax.errors import Stopped
from bloodjax.profiling import recorder
from bloodjax.training import class_balance, factory, metric_writer, optim
from bloodjax.training.divergence import Diverged, Divergence
from bloodjax.training.setup import RunContext
from bloodjax.training.train_step import Phase

# Seconds between two looks at the device's metrics, each of which waits for the device.
_LOOK_EVERY = 1.0
# Calls that may wait for the device. One keeps it busy; more would only delay the answer to Ctrl-C.
_IN_FLIGHT = 2


class Trainer:
    """What stays the same from the first epoch to the last."""

    def __init__(
        self,
        ready: RunContext,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        stop: ShutdownRequest,
    ):
        config, parts, feed = ready.config, ready.parts, ready.feed
        self.config, self.parts = config, parts
        self.per_epoch = feed.per_epoch
        self._checkpoints = checkpoints
        self._watch = Divergence(config, workdir, checkpoints, feed.per_epoch)
        self.step = 0
        self.steps = feed.steps
        self._feed, self._workdir = feed, workdir
        self._classes = parts.train.classes
        self._recorder = recorder.Recorder(config, workdir, len(self._classes), self.steps)
        self._evaluated = parts.evaluated("validation")
        self._stop = stop
        self._saved_at = time.monotonic()
        self._together = distributed.StopConsensus()
        self._n = len(parts.train)
        weights = class_balance.class_weights(config, parts.train.labels, len(self._classes))
        self._class_weights = self.steps.replicate(weights)
        self._phases: dict[tuple[int, float], Phase] = {}
        self._seconds, self._images_per_second = 0.0, 0.0

    def train(self, backbone: PyTree) -> None:
        """Trains to the end of the last phase, and goes back as often as it may where it diverges.

        It starts from the latest checkpoint, or from `backbone` where there is none.
        """
        while True:
            try:
                return self._to_the_end(backbone)
            except Diverged as found:
                self._watch.rollback(found, self.step)
                if self._checkpoints.latest_step is None:
                    _, backbone = factory.pretrained(self.config)

    def _to_the_end(self, backbone: PyTree) -> None:
        progress, state = self.restore(backbone)
        with metric_writer.MetricWriter(
            self._workdir, self.step, unfinished=progress.trained
        ) as log:
            self._watch.log_rollbacks(log, self._workdir)
            self._end_if_asked(max(distributed.exchange(self._stop.signal)))
            while progress.phase < len(PHASES):
                if self.phase_is_over(progress):
                    progress, state = self.next_phase(progress, state)
                    continue
                if not progress.trained:
                    state = self.epoch(progress, state)
                progress, entry = self.end_epoch(progress, state)
                # The entry first: one without its checkpoint is written again, by the same figures.
                self._watch.log_skipped(log, self.step)
                log.write(entry)
                self._checkpoints.save(self.steps.unreplicate(state), progress)

    def restore(self, backbone: PyTree) -> tuple[RunProgress, TrainState]:
        """The latest checkpoint's progress and state, or those of a fresh run from `backbone`."""
        shapes = factory.shapes(self.config, len(self._classes))
        model = self.config.model
        source = model.source.to_dict() if model.weights else {}
        progress = RunProgress(classes=self._classes, source=source)
        ema = self.config.ema > 0
        if self._checkpoints.latest_step is None:
            variables = factory.variables(self.config, len(self._classes), backbone)
            state = TrainState.create(variables, self._phase(progress, shapes).tx, ema=ema)
        else:
            progress = self._checkpoints.progress()
            tx = self._phase(progress, shapes).tx
            like = jax.eval_shape(functools.partial(TrainState.create, tx=tx, ema=ema), shapes)
            latest = self._checkpoints.latest_step
            state = self._checkpoints.restore(latest, like, self.steps.layout)
            console.log_info(f"going on from step {int(state.step)}")
        self.step = int(state.step)
        return progress, self.steps.shard_state(state)

    def phase_is_over(self, progress: RunProgress) -> bool:
        """Whether its epochs are done, or early stopping ends it."""
        epochs = self.config.phases[PHASES[progress.phase]].epochs
        patience = self.config.early_stopping.patience
        return progress.phase_epochs >= epochs or progress.waited >= patience

    def next_phase(
        self, progress: RunProgress, state: TrainState
    ) -> tuple[RunProgress, TrainState]:
        """The start of the next phase, from the best weights so far."""
        state = self.steps.unreplicate(state)
        variables = state.averaged
        if progress.best_step not in (None, self.step):
            variables = self._checkpoints.restore_variables(
                progress.best_step,
                variables,
                ema=self.config.ema > 0,
                layout=self.steps.layout,
            )
        progress = progress.next_phase()
        if progress.phase < len(PHASES):
            state = state.begin_phase(variables, self._phase(progress, variables).tx)
        return progress, self.steps.shard_state(state)

    def epoch(self, progress: RunProgress, state: TrainState) -> TrainState:
        """Trains to the end of the epoch that `self.step` stands in."""
        epoch, done = divmod(self.step, self.per_epoch)
        if done == 0:
            zeros = self.steps.replicate(Metrics.zeros())
            state = state.replace(metrics=state.metrics.next_epoch(zeros))
        phase = self._phase(progress, state.variables)
        if phase.cached:
            self._cache_features(state)
        started, first = time.monotonic(), self.step
        looked = started
        in_flight = collections.deque()
        with (
            console.ProgressBar(f"epoch {epoch + 1}", self.per_epoch, done) as bar,
            self._recorder.epoch(PHASES[progress.phase]) as train,
            contextlib.closing(self._feed.calls(epoch, done, phase.cached)) as calls,
        ):
            for steps, data, order in distributed.with_timeout(calls):
                state, sums = train(phase, steps, state, data, order, self._class_weights)
                done, self.step = done + steps, self.step + steps
                in_flight.append(sums)
                if len(in_flight) > _IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
                # Several processes look at the epoch's end and at a save: all at the same step.
                due = distributed.count() == 1 and time.monotonic() - looked > _LOOK_EVERY
                if due or done == self.per_epoch:
                    figures = self._watch.sync_metrics(sums, self.step)
                    looked = time.monotonic()
                    self._seconds = looked - started
                    images = (self.step - first) * self.config.batch_size
                    self._images_per_second = images / self._seconds
                    bar.update(done, **figures, images_per_second=self._images_per_second)
                if done < self.per_epoch:
                    self._save_within_epoch(progress, state, sums)
        return state

    def end_epoch(
        self, progress: RunProgress, state: TrainState
    ) -> tuple[RunProgress, dict[str, Any]]:
        """What `after_epoch` gives; a signal breaks it off and has the epoch's training saved."""
        try:
            with self._stop.interruptible(self._goes_on()):
                return self.after_epoch(progress, state)
        except Stopped:
            trained = dataclasses.replace(progress, trained=True)
            self._checkpoints.save(self.steps.unreplicate(state), trained)
            raise

    def after_epoch(
        self, progress: RunProgress, state: TrainState
    ) -> tuple[RunProgress, dict[str, Any]]:
        """Validates; the progress that follows, and the epoch's entry in the log."""
        name = PHASES[progress.phase]
        last = (progress.phase_epochs + 1) * self.per_epoch - 1
        schedule = optim.phase_schedule(
            self.config.phases[name], self.per_epoch, self._watch.lr_scale
        )
        entry = {
            "event": "epoch",
            "step": self.step,
            "epoch": self.step // self.per_epoch,
            "phase": name,
            "train": {
                **self._watch.sync_metrics(self.steps.unreplicate(state).metrics, self.step),
                "images_per_second": round(self._images_per_second, 1),
            },
            "learning_rate": float(schedule(last)),
            "seconds": round(self._seconds, 3),
        }
        stopping = self.config.early_stopping
        for part, dataset in self._evaluated.items():
            entry[part] = self._figures(state.averaged, dataset)
            if self.config.ema:
                entry[f"{part}_raw"] = self._figures(state.variables, dataset)
        value = None
        if self._evaluated:
            value = statistics.fmean(entry[s][stopping.metric] for s in WATCHED[stopping.set])
        value = distributed.exchange(value)[0]  # all decide by one machine's arithmetic
        console.log_info(metric_writer.epoch_line(entry))
        larger_is_better, keep = METRICS[stopping.metric], self.config.soup
        return progress.after_epoch(value, larger_is_better, self.step, keep), entry

    def _figures(self, variables: PyTree, dataset: Dataset) -> dict[str, float]:
        probabilities = self.steps.predict(variables, dataset.images, "none")
        self._watch.check(probabilities, self.step)
        return metrics.quick(probabilities, dataset.labels)

    def _phase(self, progress: RunProgress, variables) -> Phase:
        """The progress's phase; one object each, which is what compiled steps are kept by."""
        key = index, rate = min(progress.phase, len(PHASES) - 1), self._watch.lr_scale
        if key not in self._phases:
            name = PHASES[index]
            options = self.config.phases[name]
            params, stats = variables["params"], variables["batch_stats"]
            tx = optim.optimizer(options, self.per_epoch, params, stats, rate)
            cached = factory.caches_features(self.config, name, self._n, len(self._classes))
            self._phases[key] = Phase(options.freeze, tx, cached)
        return self._phases[key]

    def _cache_features(self, state: TrainState) -> None:
        with console.ProgressBar("features of the images", self._n, 0) as bar:
            for done in self._feed.cache(state.variables):
                bar.advance(done)
                self._end_if_asked(self._together(False, self._stop.signal)[1])

    def _end_if_asked(self, signal: int) -> None:
        if signal:
            raise Stopped(self._goes_on(), signal)

    def _goes_on(self) -> str:
        return f"stopped at step {self.step}; the same command goes on from there"

    def describe_unsaved(self) -> str:
        """What is lost if the process exits now."""
        kept = self._checkpoints.last_committed_step
        last = "there is no checkpoint" if kept is None else f"the last checkpoint is of {kept}"
        return f"step {self.step} was reached; {last}, from where the same command goes on"

    def _save_within_epoch(self, progress: RunProgress, state: TrainState, sums: Metrics) -> None:
        minutes = (time.monotonic() - self._saved_at) / 60
        due = 0 < self.config.checkpoint_minutes < minutes
        due, signal = self._together(due, self._stop.signal)
        if due or signal:
            self._watch.sync_metrics(sums, self.step)
            self._checkpoints.save(self.steps.unreplicate(state), progress)
            self._saved_at = time.monotonic()
        self._end_if_asked(signal)
