"""The training of a run: restore, then phases of epochs, each validated and saved.

A checkpoint holds only the state and the `RunProgress`. The order of the images is a function of
(seed, epoch) and every random number one of (seed, step), so a resumed run continues exactly as if
it had not been stopped.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from bloodjax import config as config_lib
from bloodjax import distributed, metrics, tracking
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.checkpoints.state import Metrics, RunProgress, TrainState
from bloodjax.cli import console
from bloodjax.config import PHASES, Config
from bloodjax.config.validation import METRICS, WATCHED
from bloodjax.data.dataset import Dataset
from bloodjax.distributed.preemption import ShutdownRequest
from bloodjax.errors import Stopped, UserError
from bloodjax.profiling import recorder
from bloodjax.tracking import TrackerGroup
from bloodjax.training import class_balance, factory, lr_range_test, optim
from bloodjax.training.divergence import Diverged, Divergence
from bloodjax.training.metric_writer import MetricWriter, epoch_line
from bloodjax.training.online_teacher import WithTeacher
from bloodjax.training.setup import RunContext
from bloodjax.training.step_config import Phase
from bloodjax.training.timing import Interval, Stopwatch, Throughput

# Seconds between two reads of the metrics within an epoch. Each one waits for the device.
_SYNC_SECONDS = 1.0
# Dispatches that may wait for the device. One keeps it busy; more would delay the answer to Ctrl-C.
_IN_FLIGHT = 2


def monitored(config: Config, entry: Mapping[str, Any]) -> float:
    """The value of an epoch that selects the best checkpoint, given the epoch's log entry."""
    options = config.early_stopping
    return statistics.fmean(entry[split][options.metric] for split in WATCHED[options.set])


class _Phases:
    """The phases of a run. A range test finds the learning rates of some of them as they start.

    Attributes:
      config: Config of the run, with the rates that are known.
      untested: Names of the phases whose rate is yet to be found.
      create: Makes a `Phase`, given its name and the other arguments of `factory.phase`.
    """

    def __init__(self, config: Config, workdir: pathlib.Path, **sizes: Any):
        """Reads the rates that were found before the run was resumed.

        Args:
          config: Config of the run.
          workdir: Folder of the run.
          sizes: Arguments of `factory.phase` that are the same for all phases.
        """
        self._sizes = sizes
        self.untested = set(config_lib.auto_rates(config))
        self._set_rates(config, dict.fromkeys(self.untested, 0.0))
        for name in config_lib.auto_rates(config):
            found = distributed.from_primary(functools.partial(lr_range_test.rate, workdir, name))
            if found is not None:
                self.set_rate(name, found)

    def set_rate(self, name: str, rate: float) -> None:
        """Sets the highest learning rate of a phase."""
        self._set_rates(self.config, {name: rate})
        self.untested.remove(name)

    def _set_rates(self, config: Config, rates: Mapping[str, float]) -> None:
        self.config = config_lib.with_learning_rates(config, rates)
        # One object for the same phase, rate and size: steps are compiled once per object.
        self.create = functools.cache(functools.partial(factory.phase, self.config, **self._sizes))


class Trainer:
    """Trains one run.

    Attributes:
      step: Training steps taken so far, over all phases.
      state: Training state on the devices; None before and after training.
    """

    def __init__(
        self,
        context: RunContext,
        workdir: pathlib.Path,
        checkpoints: Checkpoints,
        stop: ShutdownRequest,
        ends_after: Callable[[Mapping[str, Any]], bool] = lambda _: False,
        trackers: TrackerGroup | None = None,
    ):
        """Compiles nothing yet.

        Args:
          context: Everything that the run needs.
          workdir: Folder of the run.
          checkpoints: Its checkpoints.
          stop: Whether the run is to stop.
          ends_after: Called with the log entry of each epoch that was validated and saved; returns
            whether training ends there. Several processes must all get the same answer.
          trackers: Trackers that get the log entries, besides TensorBoard.
        """
        config, splits, loader = context.config, context.splits, context.loader
        train, num_classes = splits.train, len(splits.train.classes)
        self.step = 0
        self.state: TrainState | None = None
        self.executor = loader.executor
        self._config, self._workdir = config, workdir
        self._loader, self._steps_per_epoch = loader, loader.steps_per_epoch
        self._checkpoints, self._stop = checkpoints, stop
        self._ends_after, self._trackers = ends_after, trackers
        self._num_images, self._classes = len(train), train.classes
        self._validation = splits.evaluated("validation")
        weights = class_balance.class_weights(config, train.labels, num_classes)
        if context.teacher:
            weights = WithTeacher(weights, context.teacher)
        self._class_weights = self.executor.replicate(weights)
        self._shapes = factory.shapes(config, num_classes)
        self._phases = _Phases(
            config,
            workdir,
            variables=self._shapes,
            num_images=len(train),
            num_classes=num_classes,
        )
        self._divergence = Divergence(config, workdir, checkpoints, self._steps_per_epoch)
        self._recorder = recorder.Recorder(
            config,
            workdir,
            network=factory.network(config, num_classes),
            compute_dtype=factory.compute_dtype(config.dtype),
            train=self.executor.train,
            program_text=self.executor.program,
        )
        self._consensus = distributed.StopConsensus()
        self._since_save = Interval(60 * config.checkpoint_minutes)

    def train(self, backbone: PyTree) -> None:
        """Trains to the end of the last phase, and rolls back if the run diverges.

        Args:
          backbone: Pretrained weights to start from if there is no checkpoint; {} for random ones.

        Raises:
          UserError: The run diverged more often than `config.divergence.rollbacks`.
          Stopped: A signal came; the run was saved.
        """
        while True:
            try:
                return self._train_to_end(backbone)
            except Diverged as divergence:
                self._divergence.rollback(divergence, self.step)
                if self._checkpoints.latest_step is None:
                    _, backbone = factory.pretrained(self._config)
            finally:
                self.state = None  # frees the devices' memory

    def describe_unsaved(self) -> str:
        """What is lost if the process ends now, in a few words."""
        saved = self._checkpoints.last_committed_step
        last = "there is no checkpoint" if saved is None else f"the last checkpoint is of {saved}"
        return f"step {self.step} was reached; {last}, from where the same command resumes"

    def _train_to_end(self, backbone: PyTree) -> None:
        progress = self.restore(backbone)
        with MetricWriter(
            self._workdir,
            self.step,
            unfinished=progress.trained,
            tensorboard=tracking.TENSORBOARD in self._config.trackers,
            trackers=self._trackers,
        ) as writer:
            self._divergence.log_rollbacks(writer, self._workdir)
            self._raise_if(max(distributed.exchange(self._stop.signal)))
            while progress.phase < len(PHASES):
                if self.phase_is_over(progress):
                    progress = self.start_next_phase(progress)
                    continue
                if PHASES[progress.phase] in self._phases.untested:
                    self.find_learning_rate(progress)
                throughput = Throughput() if progress.trained else self.train_epoch(progress)
                progress, entry = self.end_epoch(progress, throughput)
                # Logged before it is saved: if the process dies in between, the resumed run logs
                # the same entry again.
                self._divergence.log_skipped(writer, self.step)
                writer.write(entry)
                self._save(progress)
                if self._ends_after(entry):
                    return

    def restore(self, backbone: PyTree) -> RunProgress:
        """Sets the state of the latest checkpoint, or a new one; returns the run's progress."""
        model, ema = self._config.model, self._config.ema > 0
        latest = self._checkpoints.latest_step
        if latest is None:
            source = model.source.to_dict() if model.weights else {}
            progress = RunProgress(classes=self._classes, source=source)
            variables = factory.variables(self._config, len(self._classes), backbone)
            state = TrainState.create(variables, self._phase(progress).tx, ema=ema)
        else:
            progress = self._checkpoints.progress()
            create = functools.partial(TrainState.create, tx=self._phase(progress).tx, ema=ema)
            like = jax.eval_shape(create, self._shapes)
            state = self._checkpoints.restore(latest, like, self.executor.layout)
            console.log_info(f"resuming from step {int(state.step)}")
        self.step, self.state = int(state.step), self.executor.shard_state(state)
        return progress

    def phase_is_over(self, progress: RunProgress) -> bool:
        """Whether all epochs of the phase are done, or early stopping ends it."""
        epochs = self._config.phases[PHASES[progress.phase]].epochs
        patience = self._config.early_stopping.patience
        return progress.phase_epochs >= epochs or progress.epochs_without_improvement >= patience

    def start_next_phase(self, progress: RunProgress) -> RunProgress:
        """Sets the state to the best weights so far, with a new optimizer."""
        state = self.executor.unreplicate(self.state)
        variables = state.averaged
        if progress.best_step not in (None, self.step):
            variables = self._checkpoints.restore_variables(
                progress.best_step,
                variables,
                ema=self._config.ema > 0,
                layout=self.executor.layout,
            )
        progress = progress.next_phase()
        if progress.phase < len(PHASES):
            state = state.begin_phase(variables, self._phase(progress).tx)
        self.state = self.executor.shard_state(state)
        return progress

    def find_learning_rate(self, progress: RunProgress) -> None:
        """Runs the range test of the present phase on a copy of the state, and sets its rate.

        Raises:
          UserError: The run is within the phase, so that the test's result is lost; or the test
            finds no rate.
          Stopped: A signal came.
        """
        name, within_epoch = PHASES[progress.phase], self.step % self._steps_per_epoch
        if progress.phase_epochs or progress.trained or within_epoch:
            raise UserError(
                f"{lr_range_test.file(self._workdir, name)}: is missing, expected the learning "
                "rate that the run has found and trains with"
            )
        optimizer = self._config.phases[name].optimizer
        phase = self._phases.create(
            name,
            size=config_lib.training_size(self._config, name, 0),
            schedule=lr_range_test.schedule(optimizer),
        )
        if phase.cached:
            self._cache_features()
        # Copies, since a step donates its state.
        copies = jax.tree.map(jnp.array, self.executor.unreplicate(self.state).variables)
        state = TrainState.create(copies, phase.tx).replace(step=jnp.int32(self.step))
        state, losses = self.executor.shard_state(state), []
        with (
            console.ProgressBar(f"learning rate of {name}", lr_range_test.STEPS, 0) as bar,
            contextlib.closing(
                lr_range_test.measure(self._loader, phase, state, self._class_weights, self.step)
            ) as measured,
        ):
            for loss in distributed.with_timeout(measured):
                losses.append(loss)
                bar.advance(len(losses))
                self._raise_if(self._consensus(False, self._stop.signal)[1])
        found = lr_range_test.find(name, optimizer, losses)
        lr_range_test.write(self._workdir, found)
        distributed.publish()
        console.log_info(found.statement())
        self._phases.set_rate(name, distributed.exchange(found.learning_rate)[0])

    def train_epoch(self, progress: RunProgress) -> Throughput:
        """Trains from the run's step to the end of its epoch."""
        epoch, done = divmod(self.step, self._steps_per_epoch)
        if done == 0:
            zeros = self.executor.replicate(Metrics.zeros())
            self.state = self.state.replace(metrics=self.state.metrics.next_epoch(zeros))
        phase = self._phase(progress)
        if phase.cached:
            self._cache_features()
        stopwatch = Stopwatch(self._config.batch_size, self.step)
        since_sync, in_flight = Interval(_SYNC_SECONDS), collections.deque()
        throughput = Throughput()
        with (
            console.ProgressBar(f"epoch {epoch + 1}", self._steps_per_epoch, done) as bar,
            self._recorder.epoch(PHASES[progress.phase]) as train_steps,
            contextlib.closing(self._loader.epoch(epoch, done, phase.cached)) as inputs,
        ):
            for num_steps, data, order in distributed.with_timeout(inputs):
                self.state, sums = train_steps(
                    phase, num_steps, self.state, data, order, self._class_weights
                )
                done, self.step = done + num_steps, self.step + num_steps
                in_flight.append(sums)
                if len(in_flight) > _IN_FLIGHT:
                    jax.block_until_ready(in_flight.popleft())
                # Several processes sync only where all are at the same step: at the epoch's end,
                # and when they save.
                due = distributed.count() == 1 and since_sync.is_over()
                if due or done == self._steps_per_epoch:
                    figures = self._divergence.sync_metrics(sums, self.step)
                    throughput = stopwatch.measure(self.step)
                    since_sync.restart()
                    bar.update(done, **figures, images_per_second=throughput.images_per_second)
                if done < self._steps_per_epoch:
                    self._save_within_epoch(progress, sums)
        return throughput

    def end_epoch(
        self, progress: RunProgress, throughput: Throughput
    ) -> tuple[RunProgress, dict[str, Any]]:
        """`validate`, which a signal aborts; the run is then saved as trained, not validated."""
        try:
            with self._stop.interruptible(self._stopped_message()):
                return self.validate(progress, throughput)
        except Stopped:
            # The signal may have come as JAX left a trace. This thread is then still in it, and
            # only another one can compute.
            with concurrent.futures.ThreadPoolExecutor(1) as other:
                other.submit(self._save, dataclasses.replace(progress, trained=True)).result()
            raise

    def validate(
        self, progress: RunProgress, throughput: Throughput
    ) -> tuple[RunProgress, dict[str, Any]]:
        """Validates the epoch; returns the next progress, and the epoch's log entry."""
        name, stopping = PHASES[progress.phase], self._config.early_stopping
        state = self.executor.unreplicate(self.state)
        schedule = optim.phase_schedule(
            self._phases.config.phases[name], self._steps_per_epoch, self._divergence.lr_scale
        )
        last_step = (progress.phase_epochs + 1) * self._steps_per_epoch - 1
        entry = {
            "event": "epoch",
            "step": self.step,
            "epoch": self.step // self._steps_per_epoch,
            "phase": name,
            "train": {
                **self._divergence.sync_metrics(state.metrics, self.step),
                "images_per_second": round(throughput.images_per_second, 1),
            },
            "learning_rate": float(schedule(last_step)),
            "seconds": round(throughput.seconds, 3),
        }
        for split, dataset in self._validation.items():
            entry[split] = self._figures(self.state.averaged, dataset)
            if self._config.ema:
                entry[f"{split}_raw"] = self._figures(self.state.variables, dataset)
        value = monitored(self._config, entry) if self._validation else None
        value = distributed.exchange(value)[0]  # every process uses the primary's floating point
        console.log_info(epoch_line(entry))
        larger_is_better, keep = METRICS[stopping.metric], self._config.soup
        return progress.after_epoch(value, larger_is_better, self.step, keep), entry

    def _figures(self, variables: PyTree, dataset: Dataset) -> dict[str, float]:
        probabilities = self.executor.predict(variables, dataset.images, "none")
        self._divergence.check(probabilities, self.step)
        return metrics.quick(probabilities, dataset.labels)

    def _phase(self, progress: RunProgress) -> Phase:
        # A run that has ended still has the optimizer of its last phase.
        name = PHASES[min(progress.phase, len(PHASES) - 1)]
        size = config_lib.training_size(self._config, name, progress.phase_epochs)
        return self._phases.create(name, lr_scale=self._divergence.lr_scale, size=size)

    def _cache_features(self) -> None:
        with console.ProgressBar("features of the images", self._num_images, 0) as bar:
            for done in self._loader.cache_features(self.state.variables):
                bar.advance(done)
                self._raise_if(self._consensus(False, self._stop.signal)[1])

    def _save_within_epoch(self, progress: RunProgress, sums: Metrics) -> None:
        due, signal = self._consensus(self._since_save.is_over(), self._stop.signal)
        if due or signal:
            self._divergence.sync_metrics(sums, self.step)
            self._save(progress)
            self._since_save.restart()
        self._raise_if(signal)

    def _save(self, progress: RunProgress) -> None:
        self._checkpoints.save(self.executor.unreplicate(self.state), progress)

    def _raise_if(self, signal: int) -> None:
        if signal:
            raise Stopped(self._stopped_message(), signal)

    def _stopped_message(self) -> str:
        return f"stopped at step {self.step}; the same command resumes from there"
