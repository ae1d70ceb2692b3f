"""launch/local.py, with commands that take no time in place of training."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import local

SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "local.py"
FLAGS = ["--config=a.py", "--workdir=some where"]


def python(code):
    return [sys.executable, "-c", code], {}


def test_each_command_has_its_place():
    one, two = local.commands(2, 3, 1234, FLAGS, {"XLA_FLAGS": "--xla_a=1"})
    place = ["--coordinator=127.0.0.1:1234", "--num_processes=2"]
    assert one[0] == [sys.executable, "-m", "bloodjax.main", *FLAGS, *place, "--process_id=0"]
    assert two[0][-1] == "--process_id=1"
    assert one[1] == {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_a=1 --xla_force_host_platform_device_count=3",
        "PYTHONUNBUFFERED": "1",
    }


def test_a_platform_that_the_user_chose_stays():
    ((_, environ),) = local.commands(1, 1, 1234, FLAGS, {"JAX_PLATFORMS": "cuda"})
    assert environ["JAX_PLATFORMS"] == "cuda"


def test_dry_run_prints_the_commands_alone(capsys):
    assert local.main(["--processes=2", "--dry-run", "--", *FLAGS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("--process_id=")[1] for line in lines] == ["0", "1"]
    assert all(
        line.startswith("JAX_PLATFORMS=") and "'--workdir=some where'" in line for line in lines
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "expected the flags of bloodjax.main after --"),
        (["--processes=0", "--", *FLAGS], "argument --processes: '0', expected a number of at"),
        (["--restarts=-1", "--", *FLAGS], "argument --restarts: '-1', expected a number of at"),
        (["--config=a.py"], "unrecognized arguments: --config=a.py"),
    ],
)
def test_wrong_flags(argv, message):
    done = subprocess.run(
        [sys.executable, SCRIPT, *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]


def test_lines_have_the_process_s_number_in_front(capfd):
    run = local.Run([python(f"print('I am {name}\\n' * 2000, end='')") for name in "ab"])
    assert run.wait() == 0
    expected = ["[0] I am a"] * 2000 + ["[1] I am b"] * 2000
    assert sorted(capfd.readouterr().out.splitlines()) == expected


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_when_one_fails_the_others_get_time_and_are_killed_then(order, capfd):
    fails, stays = "raise SystemExit(9)", "import time; time.sleep(60)"
    ends_too = "import time, sys; time.sleep(0.5); sys.exit(75)"
    codes = (fails, ends_too, stays)
    started = time.monotonic()
    run = local.Run([python(codes[i]) for i in order], grace=2.0)
    assert run.wait() == 9
    assert time.monotonic() - started < 50
    found = [run.processes[order.index(i)].returncode for i in range(3)]
    assert found == [9, 75, -signal.SIGKILL]
    assert (
        f"local.py: process {order.index(2)} did not exit and was killed" in capfd.readouterr().err
    )


def test_a_user_s_mistake_in_any_process_is_the_run_s():
    assert local.Run([python("raise SystemExit(75)"), python("raise SystemExit(2)")]).wait() == 2


def test_a_signal_s_number_is_the_status():
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert local.Run([python(code)]).wait() == 137


def test_signals_are_passed_on(tmp_path):
    ready = [tmp_path / name for name in "ab"]
    code = "import pathlib, signal, sys\nsignal.signal(15, lambda *_: sys.exit(7))\n"
    run = local.Run(
        [python(f"{code}pathlib.Path({str(r)!r}).touch()\nsignal.pause()") for r in ready]
    )
    before = signal.getsignal(signal.SIGTERM)

    def send():
        while not all(file.exists() for file in ready):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(0.5, send)  # `wait` has begun by then
    timer.start()
    assert run.wait() == 7
    assert [process.returncode for process in run.processes] == [7, 7]
    assert run.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("results", "status", "starts"),
    [
        ([75, 137, 0], 0, 3),
        ([2], 2, 1),
        ([75, 1, 134], 134, 3),  # as often as it may
    ],
)
def test_starts_again_but_for_0_and_2(results, status, starts, monkeypatch):
    left = list(results)

    def commands(*_):
        return [python(f"raise SystemExit({left.pop(0)})")]

    monkeypatch.setattr(local, "commands", commands)
    assert local.main(["--restarts=2", "--", *FLAGS]) == status
    assert len(results) - len(left) == starts
