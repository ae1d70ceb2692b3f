"""Where a training step's time goes: records a few calls of each phase, and makes a table of them.

With `config.profile`, a phase's third to fifth call of a size are recorded (the first compiles),
and leave in the workdir

    profile/<phase>/        the trace, for TensorBoard (XProf) and ui.perfetto.dev
    profile/profile.json    the figures of each phase; profile.txt: the same to read

Nothing else of the run changes, and whatever fails here is a line on the terminal.
"""

from __future__ import annotations

import collections
import contextlib
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from bloodjax import distributed
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.io.files import atomic_write, read_json
from bloodjax.models import summary
from bloodjax.profiling import breakdown, hardware, hlo, trace
from bloodjax.training import factory
from bloodjax.training.executor import JitExecutor, PmapExecutor
from bloodjax.training.train_step import Phase

FOLDER = "profile"
_BEFORE = 2  # calls of the same size before the first that is recorded: compiling, and one more
_CALLS = 3


def read(workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The content of `profile.json`, phase by phase; {} where nothing was recorded."""
    path = workdir / FOLDER / "profile.json"
    return read_json(path, "a run's profile", dict) if path.exists() else {}


class Recorder:
    """Records the calls of a run's training steps, once a phase, where the config asks for it."""

    def __init__(
        self,
        config: Config,
        workdir: pathlib.Path,
        num_classes: int,
        steps: JitExecutor | PmapExecutor,
    ):
        self._config = config
        self._workdir = workdir
        self._num_classes = num_classes
        self._steps = steps
        self._phase: _Recording | None = None
        self._records = config.profile and distributed.count() == 1
        if config.profile and not self._records:
            console.log_info("no profile: it is of a run of one process")

    def epoch(self, phase: str) -> contextlib.AbstractContextManager[Callable]:
        """What to call in place of `steps.train` within an epoch of `phase`, and as it."""
        if not self._records or phase in read(self._workdir):
            return contextlib.nullcontext(self._steps.train)
        if self._phase is None or self._phase.name != phase:
            folder = self._workdir / FOLDER / phase
            self._phase = _Recording(phase, folder, self._steps, self._finish)
        return self._phase

    def _finish(self, recording: _Recording) -> None:
        entry = measure(recording, self._config, self._num_classes)
        entries = read(self._workdir) | {recording.name: entry}
        folder = self._workdir / FOLDER
        atomic_write(folder / "profile.json", json.dumps(entries, indent=2) + "\n")
        atomic_write(folder / "profile.txt", breakdown.as_text(entries))
        console.log_info(f"profile of {recording.name}: {folder / 'profile.txt'}")


class _Recording:
    """One phase's calls, watched; a context for each of its epochs.

    Attributes:
      name: the phase's.
      folder: of the trace.
      phase: what the steps were compiled for.
      program: the text of the compiled step.
      first_seconds: what the first call took, compiling included.
      calls: how many were recorded.
      size: steps in each.
      seconds: what they took, all together.
      cpu_seconds: of all threads of this process meanwhile.
    """

    def __init__(
        self,
        name: str,
        folder: pathlib.Path,
        steps: JitExecutor | PmapExecutor,
        finish: Callable[[_Recording], None],
    ):
        self.name, self.folder, self.program = name, folder, ""
        self.phase: Phase | None = None
        self.first_seconds: float | None = None
        self.calls, self.size = 0, 0
        self.seconds, self.cpu_seconds = 0.0, 0.0
        self._steps, self._finish = steps, finish
        self._seen: collections.Counter[int] = collections.Counter()
        self._tracing = self._over = False
        self._last: Any = None

    def __enter__(self) -> Callable:
        return self

    def __exit__(self, error, *_) -> None:
        if self._tracing:
            self._stop(keep=error is None)

    def __call__(self, phase: Phase, steps: int, state, *data):
        """`steps.train`, watched."""
        if self._tracing and steps != self.size:
            self._stop()
        if self._seen[steps] >= _BEFORE and not (self._tracing or self._over):
            self._start(phase, steps, state, *data)
        started = time.perf_counter()
        with jax.profiler.StepTraceAnnotation("train", step_num=self.calls):
            out = self._steps.train(phase, steps, state, *data)
        self._seen[steps] += 1
        if self.first_seconds is None:
            jax.block_until_ready(out)
            self.first_seconds = time.perf_counter() - started
        if self._tracing:
            # The state will be donated to the next call; the metrics stay.
            self.calls, self._last = self.calls + 1, out[1]
            if self.calls == _CALLS:
                self._stop()
        return out

    def _start(self, phase, steps, state, *data) -> None:
        self._over = True  # one attempt, whatever comes of it
        with self._harmless():
            jax.block_until_ready(state)
            self.phase = phase
            self.program = self._steps.program(phase, steps, state, *data)
            shutil.rmtree(self.folder, ignore_errors=True)
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # the host's own functions would fill the trace
            jax.profiler.start_trace(self.folder, profiler_options=options)
            self._tracing, self.size = True, steps
            self.seconds, self.cpu_seconds = -time.perf_counter(), -time.process_time()

    def _stop(self, keep: bool = True) -> None:
        self._tracing = False
        with self._harmless():
            jax.block_until_ready(self._last)
            self.seconds += time.perf_counter()
            self.cpu_seconds += time.process_time()
            jax.profiler.stop_trace()
            if keep:
                self._finish(self)
            else:  # the run ends here, and will record when it goes on
                shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a profile is an extra: nothing in it may end the run
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            console.log_info(f"no profile of {self.name}: {reason}")


def measure(recording: _Recording, config: Config, num_classes: int) -> dict[str, Any]:
    """A phase's entry in `profile.json`."""
    steps = recording.calls * recording.size
    images_per_second = steps * config.batch_size / recording.seconds
    network, size = factory.network(config, num_classes), config.data.image_size
    phase = recording.phase
    flops = summary.training_flops(network, size, phase.freeze, phase.cached)
    peak = hardware.peak(factory.compute_dtype(config.dtype).name)
    memory, memory_of = hardware.peak_memory()
    entry = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "steps": steps,
        "batch_size": config.batch_size,
        "ms_per_step": 1e3 * recording.seconds / steps,
        "cpu_ms_per_step": 1e3 * recording.cpu_seconds / steps,
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
    spans = trace.read(recording.folder, program.name)
    if not spans:
        entry["note"] = (
            "The trace of this platform names no operations of the step; "
            "open it in XProf (TensorBoard) or ui.perfetto.dev."
        )
    kinds = summary.kinds(network, size)
    return entry | breakdown.tables(
        spans, program, kinds, steps, recording.seconds, hardware.threads()
    )
