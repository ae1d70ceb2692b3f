"""Processes that keep in touch, without JAX: real ones, for what is tested is how they end."""

import json
import pathlib
import subprocess
import sys
import threading

import pytest

from bloodjax.distributed import heartbeat, transport

# Each process runs a line of Python with `watch`, its `Peers`, at hand.
PROGRAM = """
import json, os, signal, sys, time
from bloodjax import connections, peers
peers._GRACE = 2.0
process, count, line = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
door = None
if process == 0:
    door, address = connections.listen()
    print(json.dumps(address), flush=True)
else:
    address = json.loads(sys.argv[4])
watch = peers.Peers(process, count, address, door, silence=2.0)
watch.exchange(None)
exec(line)
watch.exchange(None)
watch.close()
"""
WAITS = "time.sleep(30)"


def end_of(*lines):
    """Status and stderr of processes that run `lines`, one each; a stopped one is killed."""
    started, address = [], []
    for process, line in enumerate(lines):
        if process == 1:
            address = [started[0].stdout.readline()]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(process), str(len(lines)), line, *address],
                cwd=pathlib.Path(__file__).parents[1],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    stopped = [i for i, line in enumerate(lines) if "SIGSTOP" in line]
    ends = {}
    for i, process in enumerate(started):
        if i not in stopped:
            _, text = process.communicate(timeout=60)
            ends[i] = (process.returncode, text)
    for i in stopped:
        started[i].kill()
        started[i].communicate()
    return ends


def kills(name):
    return f"os.kill(os.getpid(), signal.{name}); time.sleep(30)"


def test_all_learn_what_each_gives():
    line = "assert watch.exchange([process, 'x']) == [[0, 'x'], [1, 'x'], [2, 'x']]"
    assert end_of(line, line, line) == {0: (0, ""), 1: (0, ""), 2: (0, "")}


def test_who_comes_late_is_waited_for():
    line = "t = time.monotonic(); watch.exchange(1); assert time.monotonic() - t > 3.5"
    ends = end_of(line, "time.sleep(4); watch.exchange(1)")
    assert ends == {0: (0, ""), 1: (0, "")}


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_by_name(victim):
    lines = [WAITS] * 3
    lines[victim] = kills("SIGKILL")
    ends = end_of(*lines)
    assert ends.pop(victim)[0] == -9
    for status, text in ends.values():
        assert status == heartbeat.LOST == 75
        assert text.startswith(f"process {victim} (")
        assert text.endswith(") ended without a word; this process ends too\n")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_the_others_by_name(victim):
    lines = [WAITS] * 3
    lines[victim] = kills("SIGSTOP")
    for status, text in end_of(*lines).values():
        assert status == 75
        assert text.startswith(f"process {victim} (")
        assert text.endswith(") has given no sign for 2 s; this process ends too\n")


def test_a_process_that_seldom_comes_to_listen_still_learns_of_one_that_is_lost():
    slowly = "judge = watch._judge; watch._judge = lambda now: (time.sleep(1.5), judge(now))"
    ends = end_of(kills("SIGSTOP"), f"{slowly}; {WAITS}")
    assert ends[1][0] == 75
    assert ends[1][1].startswith("process 0 (")


def test_a_process_whose_watch_fails_ends():
    ends = end_of(WAITS, f"watch._judge = None; {WAITS}")
    assert ends[1][0] == ends[0][0] == 75
    assert ") cannot watch the others; this process ends too\n" in ends[1][1]
    assert ends[0][1].startswith("process 1 (")


def test_a_process_that_hangs_says_so_itself_and_where():
    hang = "with watch.within(1, 'waiting for its data'): time.sleep(30)"
    ends = end_of("watch.exchange(1)", hang)
    for status, text in ends.values():
        assert status == 75
        assert "process 1 (" in text
        assert ") has been waiting for its data for 1 s; this process ends too\n" in text
    assert "most recent call first" in ends[1][1]


def test_what_is_in_time_ends_nothing():
    line = "with watch.within(2, 'waiting'): pass\ntime.sleep(3)"
    assert end_of(line, line) == {0: (0, ""), 1: (0, "")}


@pytest.mark.parametrize(("given", "text"), [(75, ""), (2, "error: ")])
def test_an_error_in_one_process_ends_all(given, text):
    fails = f"watch.fail({given}, 'failed: no such file'); watch.linger(); os._exit(9)"
    ends = end_of("watch.exchange(1)", fails, "watch.exchange(1)")
    assert ends[1] == (9, "")
    for i in (0, 2):
        assert ends[i][0] == given
        assert ends[i][1].startswith(f"{text}process 1 (")
        assert ") failed: no such file" in ends[i][1]


def test_a_process_that_fails_and_does_not_end_is_ended():
    ends = end_of("watch.exchange(1)", f"watch.fail(75, 'failed'); {WAITS}")
    assert [status for status, _ in ends.values()] == [75, 75]


def test_strangers_are_sent_away():
    door, address = transport.listen()
    accepted = []
    thread = threading.Thread(
        target=lambda: accepted.extend(transport.receive_all(door, 2, address["token"], "a"))
    )
    thread.start()
    stranger = {**address, "token": "guessed"}
    with pytest.raises(OSError, match=r"closed|reset"):
        transport.join(1, stranger, "b", attempts=1)
    line = transport.join(1, json.loads(json.dumps(address)), "b")
    thread.join()
    assert (line.process, line.host) == (0, "a")
    assert [(other.process, other.host) for other in accepted] == [(1, "b")]
    line.socket.close()
    accepted[0].socket.close()
