"""Tests of bloodjax/tuning/local_workers.py."""

import signal
import subprocess
import sys

import pytest

from bloodjax.cli.command import flags
from bloodjax.distributed import preemption
from bloodjax.errors import Stopped, UserError
from bloodjax.tuning import local_workers
from bloodjax.tuning.local_workers import devices, started


@pytest.mark.parametrize(
    "own", [["--workers=3", "--test"], ["-workers=3", "-test"], ["--workers", "3", "--test=true"]]
)
def test_the_others_start_no_workers_and_evaluate_nothing(tmp_path, monkeypatch, own):
    commands, popen = [], subprocess.Popen

    def start(words, **options):
        commands.append(words)
        return popen([sys.executable, "-S", "-c", ""], **options)

    monkeypatch.setattr(local_workers.subprocess, "Popen", start)
    with started(2, tmp_path, [*own, "--keep=2"]):
        pass
    ((_, *words),) = commands
    assert words[:2] == ["-m", "bloodjax.sweep"]
    known = flags.FlagValues()
    flags.DEFINE_integer("workers", 1, "", flag_values=known)
    flags.DEFINE_integer("keep", 5, "", flag_values=known)
    flags.DEFINE_boolean("test", False, "", flag_values=known)
    assert known(words[1:]) == ["bloodjax.sweep"]
    assert (known.workers, known.test, known.keep) == (1, False, 2)


def test_each_worker_gets_its_share_of_the_gpus():
    assert devices(2, {}) == [{}, {}]
    assert devices(2, {"CUDA_VISIBLE_DEVICES": "0,1,2"}) == [
        {"CUDA_VISIBLE_DEVICES": "0,2"},
        {"CUDA_VISIBLE_DEVICES": "1"},
    ]
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=7 has 1 GPU, expected one for each"):
        devices(2, {"CUDA_VISIBLE_DEVICES": "7"})
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=0,-1,1 has 1 GPU"):
        devices(2, {"CUDA_VISIBLE_DEVICES": "0,-1,1"})


def test_hidden_gpus_are_no_gpus():
    assert devices(2, {"CUDA_VISIBLE_DEVICES": "-1"}) == [{}, {}]


@pytest.fixture
def stand_in(monkeypatch):
    """Lets the other workers run a line of Python instead of the command."""

    def use(line):
        real = subprocess.Popen
        monkeypatch.setattr(
            local_workers.subprocess,
            "Popen",
            lambda _, **options: real([sys.executable, "-S", "-c", line], **options),
        )

    return use


def test_they_log_to_files_and_are_waited_for(tmp_path, stand_in):
    stand_in("print('up')")
    with started(3, tmp_path, []):
        pass
    logs = sorted(path.name for path in tmp_path.iterdir())
    assert logs == ["worker1.log", "worker2.log"]
    assert (tmp_path / "worker2.log").read_text() == "up\n"


def test_one_that_fails_is_named(tmp_path, stand_in):
    stand_in("raise SystemExit(2)")
    with (
        pytest.raises(UserError, match=r"1 worker ended with an error; .*worker1\.log"),
        started(2, tmp_path, []),
    ):
        pass


def test_one_that_this_process_leaves_at_once_is_ended(tmp_path, stand_in, monkeypatch):
    stand_in("import time; time.sleep(600)")
    ended = []
    monkeypatch.setattr(preemption.os, "_exit", ended.append)
    with pytest.raises(UserError, match="1 worker ended with an error"), started(2, tmp_path, []):
        preemption._exit(signal.SIGINT, "stopped at once")
    assert ended == [130]
    preemption._exit(signal.SIGTERM, "nothing is left to end")


def test_a_signal_is_handed_on(tmp_path, stand_in):
    wait = "import signal, sys, time; print(1, flush=True); time.sleep(600)"
    stand_in(wait)
    with pytest.raises(Stopped), started(2, tmp_path, []):
        raise Stopped("stopped", 2)
    assert (tmp_path / "worker1.log").exists()
