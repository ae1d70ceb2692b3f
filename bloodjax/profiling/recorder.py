"""Profiles a few training steps of each phase and summarises where their time goes.

With `config.profile`, the third to fifth call of a phase's training steps are traced (the first
call compiles). The workdir then contains

    profile/<phase>/        the trace, for TensorBoard (XProf) and ui.perfetto.dev
    profile/profile.json    each phase's measurements; profile.txt: the same as text

Profiling changes no result of the run. If profiling fails, the run logs one line and continues.
"""

from __future__ import annotations

import collections
import contextlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn

from bloodjax import distributed
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.io.files import atomic_write, read_json
from bloodjax.models import summary
from bloodjax.profiling import breakdown, hardware, hlo, trace

FOLDER = "profile"
# Calls of the same program before the first traced one: one that compiles, and one more.
_WARMUP_CALLS = 2
_TRACED_CALLS = 3


@runtime_checkable
class Phase(Protocol):
    """The properties of a training phase that its number of operations depends on."""

    freeze: str
    cached: bool
    size: int | None


def load(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The content of `profile.json`, by phase; {} if the run was not profiled."""
    path = workdir / FOLDER / "profile.json"
    return read_json(path, "a run's profile", dict) if path.exists() else {}


class Recorder:
    """Profiles each phase of a run once, if the config asks for it."""

    def __init__(
        self,
        config: Config,
        workdir: pathlib.Path,
        *,
        network: nn.Module,
        compute_dtype: jnp.dtype,
        train: Callable,
        program_text: Callable[..., str],
    ):
        """Logs one line if a profile was asked for but the run has several processes.

        Args:
          config: Config of the run.
          workdir: Folder of the run.
          network: The network with its head.
          compute_dtype: Dtype of the network's operations.
          train: Runs training steps: `(phase, num_steps, state, *data) -> (state, metrics)`. The
            state is donated.
          program_text: Compiles what `train` runs, from the same arguments; returns its HLO text.
        """
        self._config = config
        self._workdir = workdir
        self._network = network
        self._compute_dtype = compute_dtype
        self._train = train
        self._program_text = program_text
        self._recording: _Recording | None = None
        self._enabled = config.profile and distributed.count() == 1
        if config.profile and not self._enabled:
            console.log_info("no profile: only runs of a single process are profiled")

    def epoch(self, phase: str) -> contextlib.AbstractContextManager[Callable]:
        """A context for one epoch of `phase`; it gives a function with the signature of `train`."""
        if not self._enabled or phase in load(self._workdir):
            return contextlib.nullcontext(self._train)
        if self._recording is None or self._recording.name != phase:
            folder = self._workdir / FOLDER / phase
            self._recording = _Recording(
                phase, folder, self._train, self._program_text, self._finish
            )
        return self._recording

    def _finish(self, recording: _Recording) -> None:
        entry = measure(recording, self._config, self._network, self._compute_dtype)
        entries = load(self._workdir) | {recording.name: entry}
        folder = self._workdir / FOLDER
        atomic_write(folder / "profile.json", json.dumps(entries, indent=2) + "\n")
        atomic_write(folder / "profile.txt", breakdown.as_text(entries))
        console.log_info(f"profile of {recording.name}: {folder / 'profile.txt'}")


class _Recording:
    """Calls `train`, and traces some of the calls; a context for each epoch of one phase.

    Attributes:
      name: Name of the phase.
      folder: Folder of the trace.
      phase: The phase that the traced steps were compiled for.
      program: HLO text of the compiled step.
      first_seconds: Duration of the first call, including compilation, in seconds.
      calls: Number of traced calls.
      steps_per_call: Training steps in each of them.
      seconds: Duration of all traced calls together.
      cpu_seconds: CPU time of all threads of this process meanwhile.
    """

    def __init__(
        self,
        name: str,
        folder: pathlib.Path,
        train: Callable,
        program_text: Callable[..., str],
        finish: Callable[[_Recording], None],
    ):
        self.name, self.folder, self.program = name, folder, ""
        self.phase: Phase | None = None
        self.first_seconds: float | None = None
        self.calls, self.steps_per_call = 0, 0
        self.seconds, self.cpu_seconds = 0.0, 0.0
        self._train, self._program_text, self._finish = train, program_text, finish
        self._calls_by_program: collections.Counter[tuple] = collections.Counter()
        self._tracing = self._attempted = False
        self._last_metrics: Any = None

    def __enter__(self) -> Callable:
        return self

    def __exit__(self, error, *_) -> None:
        if self._tracing:
            self._stop(keep=error is None)

    def __call__(self, phase: Phase, num_steps: int, state, *data):
        """Runs `train` with these arguments."""
        if self._tracing and num_steps != self.steps_per_call:
            self._stop()
        # The sizes of one phase are several programs.
        warm = self._calls_by_program[phase, num_steps] >= _WARMUP_CALLS
        if warm and not (self._tracing or self._attempted):
            self._start(phase, num_steps, state, *data)
        started = time.perf_counter()
        with jax.profiler.StepTraceAnnotation("train", step_num=self.calls):
            out = self._train(phase, num_steps, state, *data)
        self._calls_by_program[phase, num_steps] += 1
        if self.first_seconds is None:
            jax.block_until_ready(out)
            self.first_seconds = time.perf_counter() - started
        if self._tracing:
            # The next call gets the state as a donated buffer; the metrics stay valid.
            self.calls, self._last_metrics = self.calls + 1, out[1]
            if self.calls == _TRACED_CALLS:
                self._stop()
        return out

    def _start(self, phase, num_steps, state, *data) -> None:
        self._attempted = True  # A failed profile is not tried again.
        with self._log_errors():
            jax.block_until_ready(state)
            self.phase = phase
            self.program = self._program_text(phase, num_steps, state, *data)
            shutil.rmtree(self.folder, ignore_errors=True)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # Python calls on the host would fill the trace.
            jax.profiler.start_trace(self.folder, profiler_options=options)
            self._tracing, self.steps_per_call = True, num_steps
            self.seconds, self.cpu_seconds = -time.perf_counter(), -time.process_time()

    def _stop(self, keep: bool = True) -> None:
        self._tracing = False
        with self._log_errors():
            jax.block_until_ready(self._last_metrics)
            self.seconds += time.perf_counter()
            self.cpu_seconds += time.process_time()
            jax.profiler.stop_trace()
            if keep:
                self._finish(self)
            else:  # The run was stopped; it profiles this phase when it resumes.
                shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def _log_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # A profile is optional: its errors must not end the run.
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            console.log_info(f"no profile of {self.name}: {reason}")


def measure(
    recording: _Recording, config: Config, network: nn.Module, compute_dtype: jnp.dtype
) -> dict[str, Any]:
    """A phase's entry in `profile.json`.

    Args:
      recording: A finished recording.
      config: Config of the run.
      network: The network with its head.
      compute_dtype: Dtype of the network's operations.
    """
    num_steps = recording.calls * recording.steps_per_call
    images_per_second = num_steps * config.batch_size / recording.seconds
    phase = recording.phase
    size = phase.size or config.data.image_size
    flops = summary.training_flops(network, size, phase.freeze, phase.cached)
    peak = hardware.peak(compute_dtype.name)
    memory, memory_of = hardware.peak_memory()
    entry = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "steps": num_steps,
        "batch_size": config.batch_size,
        "ms_per_step": 1e3 * recording.seconds / num_steps,
        "cpu_ms_per_step": 1e3 * recording.cpu_seconds / num_steps,
        "images_per_second": images_per_second,
        "first_call_seconds": recording.first_seconds,
        "flops_per_image": flops,
        "peak_flops": peak.flops,
        "peak_origin": peak.origin,
        "mfu": hardware.utilisation(flops * images_per_second, peak),
        "peak_memory_bytes": memory,
        "peak_memory_of": memory_of,
        "note": "",
    }
    program = hlo.parse(recording.program)
    spans = trace.load(recording.folder, program.name)
    if not spans:
        entry["note"] = (
            "The trace of this platform does not name the step's operations. "
            "Open it in XProf (TensorBoard) or ui.perfetto.dev."
        )
    layer_types = summary.layer_types(network, size)
    return entry | breakdown.tables(
        spans, program, layer_types, num_steps, recording.seconds, hardware.threads()
    )
