"""launch/restart.sh: starts a command again until it is done."""

import signal
import subprocess
import sys

import pytest

WAITS = 'trap "echo saved; exit 143" TERM; echo up; while true; do sleep 0.05; done'


def statuses(machine, *values):
    """Installs `train`, which ends with one status after the other."""
    (machine.folder / "statuses").write_text("".join(f"{value}\n" for value in values))
    machine.standin("train", 'exit "$(reply "$HOME/statuses")"')


@pytest.mark.parametrize(
    ("ends", "status", "starts"),
    [((0,), 0, 1), ((2,), 2, 1), ((75, 143, 1, 0), 0, 4), ((1, 2), 2, 2), ((137,), 137, 4)],
)
def test_all_but_done_and_a_mistake_is_started_again_up_to_a_limit(machine, ends, status, starts):
    statuses(machine, *ends)
    ended = machine.run("restart.sh", "--restarts=3", "--delay=0", "--", "train", "a b")
    assert ended.returncode == status
    assert machine.calls() == [["train", "a b"]] * starts


def test_a_signal_is_handed_on_and_ends_it(machine):
    flags = ("--delay=0", f"--status-file={machine.folder}/status", "--", "bash", "-c", WAITS)
    process = machine.start("restart.sh", *flags)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\n"
    assert process.returncode == 143
    assert (machine.folder / "status").read_text() == "143\n"


_TERMINAL = """
import os, pty, signal, sys
# The tests may have been started in the background, where a shell ignores it.
signal.signal(signal.SIGINT, signal.SIG_DFL)
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))
"""
# Like a run, it handles SIGINT although a shell ignores that for what it starts in the background.
COUNTS = """
import signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: print("a signal", flush=True))
print("up", flush=True)
for _ in range(20):
    time.sleep(0.05)
sys.exit(143)
"""


def test_ctrl_c_in_a_terminal_reaches_the_command_once(machine, launch):
    script = [str(launch / "restart.sh"), "--delay=0", "--"]
    script += [sys.executable, "-c", COUNTS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(
        [sys.executable, "-c", _TERMINAL, *script], env=machine.env, **pipes
    ) as process:
        assert process.stdout.readline() == b"up\r\n"
        process.stdin.write(b"\x03")
        process.stdin.flush()
        printed = process.stdout.read()
    assert printed.count(b"a signal") == 1
    assert process.returncode == 143


def test_a_signal_ends_the_pause_too(machine):
    statuses(machine, 75)
    process = machine.start("restart.sh", "--delay=1000", "--", "train")
    assert "restarting in 1000 s" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert len(machine.calls()) == 1


def test_dry_run_runs_nothing(machine):
    statuses(machine, 0)
    assert machine.run("restart.sh", "--dry-run", "--", "train", "a b").stdout == "train a\\ b\n"
    assert machine.calls() == []


@pytest.mark.parametrize("flags", [(), ("--restarts=x", "--", "train"), ("train",)])
def test_a_mistake_is_one_line(machine, flags):
    machine.mistake("restart.sh", *flags)
