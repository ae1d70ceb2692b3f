"""Runs of several real processes on this machine's CPU, compared with the same run in one."""

import functools
import json
import pathlib
import signal
import sys
import threading
import time

import pytest

from bloodjax import config as config_lib
from bloodjax.checkpoints import integrity
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.distributed import runtime
from bloodjax.training import metric_writer
from launch import local

ROOT = pathlib.Path(__file__).parents[2]
# As in conftest: on busy cores, devices may keep each other waiting for long.
PATIENT = {"XLA_FLAGS": "--xla_cpu_collective_call_terminate_timeout_seconds=300"}
CONFIG = """
import json
from ml_collections import ConfigDict

def get_config():
    return ConfigDict(json.loads({!r}))
"""
COMMAND = """
from bloodjax import main
from bloodjax.cli import command

command.run(main.main, required=("config", "workdir"), takes_config=True)
"""


# Rounding differs with the number of devices; Adam and larger rates blow it up over 21 steps.
SGD = {
    f"phases.{phase}.{key}": value
    for phase in config_lib.PHASES
    for key, value in {"optimizer": "sgd", "learning_rate": 0.002}.items()
}


@pytest.fixture(scope="module")
def environ(tmp_path_factory):
    """All runs of this file share what the first of them compiled."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="module")
def start_in(make_config, tmp_path_factory, environ):
    """What starts the tiny run in a workdir; a `script` runs ahead of each process."""
    file = tmp_path_factory.mktemp("config") / "config.py"
    file.write_text(CONFIG.format(config_lib.to_json(make_config(**SGD))))

    def started(workdir, processes, devices, *flags, script="", grace=60.0):
        flags = [f"--config={file}", f"--workdir={workdir}", *flags]
        commands = local.commands(processes, devices, local.free_port(), flags, PATIENT)
        if script:
            code = script + COMMAND
            commands = [([c[0], "-c", code, *c[3:]], own) for c, own in commands]
        return local.Run([(c, own | environ) for c, own in commands], grace)

    return started


@pytest.fixture(scope="module")
def alone(start_in, tmp_path_factory):
    """The workdir of the run in one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert start_in(workdir, 1, 1).wait() == 0
    return workdir


@pytest.fixture
def start(start_in, tmp_path):
    return functools.partial(start_in, tmp_path / "run")


def statuses(run):
    run.wait()
    return [process.returncode for process in run.processes]


def harm(run, process, number, workdir, step=7):
    """Sends a signal to a process once the checkpoint of a step is whole; returns when it did."""
    sent = []

    def watch():
        while not (workdir / "checkpoints" / str(step) / integrity.FILE).is_file():
            time.sleep(0.02)
        sent.append(time.monotonic())
        run.processes[process].send_signal(number)

    threading.Thread(target=watch, daemon=True).start()
    return sent


def assert_same_run(workdir, expected, tolerance=1e-5):
    """The losses of 21 steps, epoch by epoch, and what evaluation counts."""
    found, other = (metric_writer.read_history(folder) for folder in (workdir, expected))
    assert [entry["step"] for entry in found] == [7, 14, 21]
    for one, two in zip(found, other, strict=True):
        for part in ("train", "validation"):
            assert one[part]["loss"] == pytest.approx(two[part]["loss"], abs=tolerance)
            assert one[part]["accuracy"] == two[part]["accuracy"]
    for part in ("test", "validation"):
        one, two = (
            json.loads((folder / "evaluate" / part / "metrics.json").read_text())
            for folder in (workdir, expected)
        )
        for key in ("n", "accuracy", "confusion_matrix", "baseline"):
            assert one[key] == two[key]


@pytest.mark.slow  # heartbeat_test and resume_test have the parts of it
def test_a_killed_process_ends_the_run_and_the_next_start_ends_as_one_process(
    start, alone, tmp_path, capfd
):
    run = start(2, 2)
    sent = harm(run, 1, signal.SIGKILL, tmp_path / "run")
    assert statuses(run) == [75, -signal.SIGKILL]
    assert time.monotonic() - sent[0] < 60
    assert ") ended unexpectedly; this process exits too" in capfd.readouterr().out
    assert statuses(start(2, 2)) == [0, 0]
    printed = capfd.readouterr().out
    assert "[0] resuming from step " in printed
    assert "[1] going on" not in printed
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(start, alone, tmp_path):
    run = start(2, 2)
    harm(run, 1, signal.SIGTERM, tmp_path / "run")
    assert statuses(run) == [143, 143]
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step >= 7
    assert statuses(start(1, 1)) == [0]
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "flags"),
    [
        (4, 1, ()),
        (1, 4, ()),
        (2, 2, ("--config.sharding=fsdp",)),
        (2, 2, ("--config.data.on_device=never",)),
    ],
)
def test_any_number_of_processes_gives_the_same(start, alone, tmp_path, processes, devices, flags):
    assert statuses(start(processes, devices, *flags)) == [0] * processes
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.slow
def test_an_average_and_a_soup_are_those_of_one_process(start_in, tmp_path):
    flags = ("--config.ema=0.5", "--config.soup=2")
    for name, processes, devices in (("two", 2, 2), ("one", 1, 1)):
        assert set(statuses(start_in(tmp_path / name, processes, devices, *flags))) == {0}
    assert_same_run(tmp_path / "two", tmp_path / "one")
    two, one = (json.loads((tmp_path / name / "soup.json").read_text()) for name in ("two", "one"))
    assert (two["steps"], two["chosen"]) == (one["steps"], one["chosen"])


@pytest.mark.slow
def test_folds_are_trained_by_two_processes(start, tmp_path):
    assert statuses(start(2, 2, "--config.folds=2")) == [0, 0]
    folder = tmp_path / "run" / "evaluate" / "out_of_fold"
    assert json.loads((folder / "metrics.json").read_text())["n"] == 136


@pytest.mark.slow
def test_two_processes_go_back_together_where_the_loss_is_not_finite(start, tmp_path):
    flags = ("learning_rate=1e36", "clip_norm=0.0", "optimizer=sgd")
    options = ("skip=2", "rollbacks=1", "factor=1e-40")
    run = start(
        2,
        2,
        *(f"--config.phases.finetune.{flag}" for flag in flags),
        *(f"--config.divergence.{option}" for option in options),
    )
    assert statuses(run) == [0, 0]
    (entry,) = json.loads((tmp_path / "run" / "rollbacks.json").read_text())
    assert (entry["step"], entry["rate"]) == (7, 1e-40)
    assert [e["step"] for e in metric_writer.read_history(tmp_path / "run", "epoch")] == [7, 14, 21]


@pytest.mark.slow
def test_each_goes_on_from_the_others_checkpoints(start, alone, tmp_path):
    workdir = tmp_path / "run"
    for step, processes, devices in ((7, 2, 2), (14, 4, 1)):
        run = start(processes, devices)
        harm(run, 0, signal.SIGTERM, workdir, step)
        assert statuses(run) == [143] * processes
    assert statuses(start(1, 1)) == [0]
    assert_same_run(workdir, alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_the_run_which_can_go_on(start, alone, tmp_path, victim, capfd):
    run = start(2, 2, grace=1.0)
    sent = harm(run, victim, signal.SIGSTOP, tmp_path / "run")
    found = statuses(run)  # the stopped one is killed by the launcher
    print(f"the other ended {time.monotonic() - sent[0]:.1f} s after the signal")
    assert time.monotonic() - sent[0] < 60
    assert (found.pop(victim), found) == (-signal.SIGKILL, [75])
    assert f"process {victim} (" in capfd.readouterr().out
    assert statuses(start(2, 2)) == [0, 0]
    assert_same_run(tmp_path / "run", alone)


FAILS = """
import sys, time
from bloodjax import distributed, errors
before = distributed.with_timeout
def failing(items):
    if "--process_id=1" in sys.argv:
        {}
    yield from items
distributed.with_timeout = lambda items: before(failing(items))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "expected", "line"),
    [
        ("time.sleep(600)", [75, 75], ") has been waiting for data for 10 s; this process exits"),
        ("1 / 0", [75, 1], ") failed: ZeroDivisionError: division by zero; this process exits"),
        ("raise errors.UserError('no disk')", [2, 2], ") failed: no disk"),
    ],
)
def test_an_error_in_one_process_ends_all(start, what, expected, line, capfd):
    started = time.monotonic()
    run = start(2, 2, "--config.peer_timeout=10", script=FAILS.format(what))
    assert statuses(run) == expected
    print(f"all ended {time.monotonic() - started:.1f} s after their start")
    assert line in capfd.readouterr().out


@pytest.mark.slow
def test_pmap_is_refused(start, capfd):
    assert statuses(start(2, 2, "--config.parallel=pmap")) == [2, 2]
    assert "error: config.parallel is 'pmap', expected jit for" in capfd.readouterr().out


def test_one_process_is_primary_and_decides_alone():
    assert runtime.is_primary()
    assert runtime.count() == 1
    assert runtime.exchange({"a": 1}) == [{"a": 1}]
    assert runtime.primary_first(lambda primary: primary)
    assert runtime.from_primary(lambda: 2) == 2
    assert runtime.process_index() == 0
    assert list(runtime.with_timeout(iter("abc"))) == ["a", "b", "c"]
    assert runtime.StopConsensus()(True, 15) == (True, 15)
    with runtime.session(None, None, None, 30.0), runtime.propagate_errors():
        assert runtime.count() == 1


def test_files_are_shared_at_barriers_and_when_they_are_published(monkeypatch):
    done = []
    with runtime.sharing_files(lambda: done.append("push"), lambda: done.append("pull")):
        runtime.barrier()  # of one process: nobody reads the files
        assert done == []
        runtime.publish()
        assert done == ["push"]
        monkeypatch.setattr(runtime, "_peers", Two())
        runtime.barrier()
        runtime.publish()
        assert done == ["push", "pull"]
        assert runtime.from_primary(lambda: done.append("called")) == [False, 0, 4]
        assert runtime.process_index() == 1
    runtime.barrier()
    assert done == ["push", "pull"]


class Two:
    """The other process never finds a save due, and gets SIGTERM at the third question."""

    process, count = 1, 2

    def __init__(self):
        self.asked = []

    def exchange(self, value):
        self.asked.append(value)
        return [[False, 15 if len(self.asked) == 3 else 0, 4], value]


def test_a_loop_asks_the_others_now_and_then(monkeypatch):
    monkeypatch.setattr(runtime, "_peers", Two())
    consensus = runtime.StopConsensus()
    # The primary's answer on saving counts, and on when to ask again.
    answers = [consensus(True, 0) for _ in range(9)]
    assert answers == [(False, 0)] * 8 + [(False, 15)]
    assert len(runtime._peers.asked) == 3


EXCHANGES = """
import sys, time
from bloodjax import distributed
process, port = int(sys.argv[1]), sys.argv[2]
with distributed.session(f"127.0.0.1:{port}", 3, process, 5.0):
    values = distributed.exchange([process, "x"])
    assert values == [[0, "x"], [1, "x"], [2, "x"]], values
    assert distributed.count() == 3
    started = time.monotonic()
    if process == 1:
        time.sleep(7)  # longer than processes may be silent
    assert distributed.primary_first(lambda primary: primary) == (process == 0)
    distributed.barrier()
    assert time.monotonic() - started > 6.5
"""


def test_all_processes_learn_what_each_gives_and_wait_for_the_latest(environ, capfd):
    port = str(local.free_port())
    run = local.Run(
        [
            (
                [sys.executable, "-c", EXCHANGES, str(process), port],
                environ | {"JAX_PLATFORMS": "cpu"},
            )
            for process in range(3)
        ]
    )
    assert statuses(run) == [0, 0, 0], capfd.readouterr().out
