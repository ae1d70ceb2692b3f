"""Kills training runs at random moments and checks that results equal an uninterrupted run's.

python -m benchmarks.kill_campaign [--sigkill=50] [--sigterm=50] [--minutes=300] [--seed=0]
                                   [--out=DIR]

A run of a small network on rendered cells is started, killed and started again with the same
command until it ends. Further runs follow until all signals have been sent, or the time is over.
Each finished run must be bit-identical to an uninterrupted run: the state of the last checkpoint,
the progress (including that of early stopping), metrics.jsonl without timings, and the files of the
evaluation. A restarted run must resume

- after SIGKILL, from the last or second last checkpoint whose writing had started;
- after SIGTERM, from the step that it had reached; its exit status must be 143.

The results are written to OUT/DEVICE/kill_campaign_DATE.json (by default benchmarks/results). The
exit status is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import record

# Two phases, of which early stopping may end the second, and every optional part of the state.
CONFIG = (
    *("--config=configs/quickstart.py", "--config.data.train=synthetic:160"),
    *("--config.data.image_size=32", "--config.batch_size=16", "--config.model.head.hidden=(16,)"),
    *("--config.phases.head.epochs=2", "--config.phases.finetune.epochs=4"),
    *("--config.early_stopping.patience=2", "--config.early_stopping.metric=loss"),
    *("--config.ema=0.9", "--config.soup=2", "--config.evaluation.bootstrap=20"),
    *("--config.checkpoint_minutes=0.005", "--config.grace_seconds=300"),
)
# Share of the signals sent at any time after the process's start; the others come in training.
_EARLY = 0.2
_TIMEOUT = 1200.0


@dataclasses.dataclass
class Start:
    """One process.

    Attributes:
      signal: The signal that was sent, or None.
      status: Exit status; if a signal ended the process, minus the signal's number.
      began: Step from which it resumed.
      step: Last step that it started.
      saves: Steps whose checkpoints it started to write.
      last: Its last event.
      errors: End of its standard error.
    """

    signal: str | None
    status: int
    began: int
    step: int
    saves: list[int]
    last: str
    errors: str


class Run:
    """A workdir, and the processes that trained in it."""

    def __init__(self, workdir: pathlib.Path, config: tuple[str, ...]):
        self.workdir, self._config = workdir, config
        self.starts: list[Start] = []

    def start(self, name: str | None = None, delay: float = 0.0, training: bool = True) -> Start:
        """Starts the command once and waits for its end.

        Args:
          name: Name of the signal to send, or None.
          delay: Seconds before the signal.
          training: Whether `delay` counts from the first step instead of the process's start.
        """
        trace = self.workdir.with_suffix(".trace")
        trace.write_text("")
        began = time.monotonic()
        command = [sys.executable, "-m", "benchmarks.traced", str(trace)]
        with subprocess.Popen(
            [*command, *self._config, f"--workdir={self.workdir}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            if name is not None:
                while training and process.poll() is None and "step" not in trace.read_text():
                    time.sleep(0.02)
                until = time.monotonic() if training else began
                while process.poll() is None and time.monotonic() < until + delay:
                    time.sleep(0.005)
                process.send_signal(signal.Signals[name])
            _, errors = process.communicate(timeout=_TIMEOUT)
        events = [line.split() for line in trace.read_text().splitlines()]
        numbers = collections.defaultdict(list)
        for kind, *number in events:
            numbers[kind].extend(map(int, number))
        before = max(numbers["from"], default=0)
        found = Start(
            name,
            process.returncode,
            before,
            max(numbers["step"], default=before),
            numbers["save"],
            events[-1][0] if events else "",
            errors[-2000:],
        )
        self.starts.append(found)
        return found

    def faults(self) -> list[str]:
        """Describes a wrong step from which the last process resumed; empty if it is correct."""
        following = self.following()
        if not following or following[-1][1] is not self.starts[-1]:
            return []
        old, new = following[-1]
        reached = old.step
        if old.signal == "SIGKILL":
            reached = [old.began, *old.saves][-2:][0]
        if new.began >= reached:
            return []
        return [f"{old.signal} at step {old.step}: resumed from {new.began}, not {reached}"]

    def following(self) -> list[tuple[Start, Start]]:
        """Pairs of consecutive processes, without those that ended before reading a checkpoint."""
        traced = [start for start in self.starts if start.last]
        return list(itertools.pairwise(traced))


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """Results of a finished run without timings; arrays are replaced by their checksums."""
    import jax

    from bloodjax import config as config_lib
    from bloodjax.checkpoints.manager import Checkpoints
    from bloodjax.checkpoints.state import TrainState
    from bloodjax.training import factory, metric_writer, optim

    config = config_lib.load_json(workdir / "config.json")
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        progress, step = checkpoints.progress(), checkpoints.latest_step
        shapes = factory.shapes(config, len(progress.classes))
        tx = optim.optimizer(config.phases.finetune, 1, shapes["params"], shapes["batch_stats"])
        new = functools.partial(TrainState.create, tx=tx, ema=config.ema > 0)
        like = jax.eval_shape(new, shapes)
        state = jax.device_get(checkpoints.restore(step, like))
    arrays = {
        jax.tree_util.keystr(path): hashlib.sha256(leaf.tobytes()).hexdigest()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    history = metric_writer.read_history(workdir)
    for entry in history:
        del entry["seconds"], entry["train"]["images_per_second"]
    written = sorted((workdir / "evaluate").rglob("*.*"))
    evaluated = {str(p.relative_to(workdir)): p.read_text("utf-8") for p in written}
    return {
        "state": arrays,
        "progress": dataclasses.asdict(progress),
        "history": history,
        "evaluated": evaluated,
    }


def _copy_cache(reference: Run, run: Run) -> None:
    """Copies the compilation cache, unless the user has one (`JAX_COMPILATION_CACHE_DIR`)."""
    folder = reference.workdir / "compiled"
    if folder.exists():
        shutil.copytree(folder, run.workdir / "compiled")


def campaign(
    kills: dict[str, int],
    seed: int,
    folder: pathlib.Path,
    config: tuple[str, ...] = CONFIG,
    minutes: float = 300.0,
) -> dict[str, Any]:
    """Runs the campaign.

    Args:
      kills: Signal -> number of times to send it.
      seed: Seed of the moments.
      folder: Folder for the workdirs.
      config: Arguments of the training command.
      minutes: Time after which no more signals are sent.

    Returns:
      The results, ready for JSON.
    """
    rng, until = random.Random(seed), time.monotonic() + 60 * minutes
    reference = Run(folder / "reference", config)
    _check_finished(reference.start())
    began = time.monotonic()
    again = Run(folder / "again", config)
    _copy_cache(reference, again)
    _check_finished(again.start())
    seconds = time.monotonic() - began  # Duration of a run with a warm compilation cache.
    expected, faults = outcome(reference.workdir), []
    left = [name for name, count in kills.items() for _ in range(count)]
    rng.shuffle(left)
    runs: list[Run] = [again]
    faults += _differences(expected, again.workdir)
    while left and time.monotonic() < until:
        run = Run(folder / f"run{len(runs)}", config)
        _copy_cache(reference, run)
        runs.append(run)
        while True:
            training = rng.random() >= _EARLY
            name = left.pop() if left and time.monotonic() < until else None
            span = seconds / 3 if training else seconds
            start = run.start(name, rng.uniform(0, span), training)
            faults += [f"{run.workdir.name}: {fault}" for fault in run.faults()]
            if start.status == 0:
                break
            faults += [f"{run.workdir.name}: {fault}" for fault in _status_faults(start)]
            came = f"{start.signal}, {start.last} {start.step}"
            print(f"{run.workdir.name}: {came}, {len(left)} left", flush=True)
        if name is not None:  # The run ended before the signal was sent.
            left.append(name)
            start.signal = None
        faults += _differences(expected, run.workdir)
        shutil.rmtree(run.workdir)
    starts = [start for run in runs for start in run.starts if start.signal]
    return {
        "seed": seed,
        "signals": dict(collections.Counter(start.signal for start in starts)),
        "during": dict(collections.Counter(start.last or "set-up" for start in starts)),
        "statuses": dict(collections.Counter(str(start.status) for start in starts)),
        "runs": len(runs),
        "steps": expected["history"][-1]["step"],
        "lost_steps": _lost(runs),
        "faults": faults,
    }


def _check_finished(start: Start) -> None:
    if start.status:
        raise RuntimeError(f"an uninterrupted run ended with {start.status}: {start.errors}")


def _status_faults(start: Start) -> list[str]:
    # A signal ends the process directly before the run has installed its handlers.
    number = signal.Signals[start.signal] if start.signal else 0
    allowed = [-number] if start.signal == "SIGKILL" else [-number, 128 + number]
    if start.signal and start.status in allowed and "Traceback" not in start.errors:
        return []
    return [f"{start.signal}: status {start.status}: {start.errors}"]


def _differences(expected: dict[str, Any], workdir: pathlib.Path) -> list[str]:
    found = outcome(workdir)
    return [f"{workdir.name}: different {key}" for key in expected if found[key] != expected[key]]


def _lost(runs: list[Run]) -> dict[str, list[int]]:
    """Signal -> for each kill, the number of started steps that had to be repeated."""
    lost = collections.defaultdict(list)
    for run in runs:
        for old, new in run.following():
            if old.signal:
                lost[old.signal].append(max(0, old.step - new.began))
    return {name: sorted(steps) for name, steps in lost.items()}


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill_campaign", description=__doc__)
    parser.add_argument("--sigkill", type=int, default=50)
    parser.add_argument("--sigterm", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    chosen = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as folder:
        kills = {"SIGKILL": chosen.sigkill, "SIGTERM": chosen.sigterm}
        found = campaign(kills, chosen.seed, pathlib.Path(folder), minutes=chosen.minutes)
    path = record.write(chosen.out, record.device_name("cpu", ""), found, "kill_campaign_")
    print(json.dumps(found, indent=1), path, sep="\n")
    sys.exit(1 if found["faults"] else 0)


if __name__ == "__main__":
    main()
