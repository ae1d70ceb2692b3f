"""Real processes that watch each other, without JAX: the tests check how they end."""

import asyncio
import json
import pathlib
import subprocess
import sys
import time

import pytest

from bloodjax.distributed import heartbeat, transport

# Each process runs a line of Python with `watch`, its `Peers`, at hand.
PROGRAM = """
import json, os, signal, sys, time
from bloodjax.distributed import heartbeat, transport
heartbeat._GRACE_SECONDS = 2.0
process, count, line = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
listener = None
if process == 0:
    listener, address = transport.listen()
    print(json.dumps(address), flush=True)
else:
    address = json.loads(sys.argv[4])
hosts = [f"host{i}" for i in range(count)]
watch = heartbeat.Peers(process, hosts, address, listener, silence=2.0)
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
                cwd=pathlib.Path(__file__).parents[2],
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


def test_many_values_in_a_row_come_in_order():
    line = "assert all(watch.exchange([i] * 9000) == [[i] * 9000] * 3 for i in range(200))"
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
        assert status == heartbeat.PEER_LOST == 75
        assert text.startswith(f"process {victim} (host{victim}) ")
        assert text.endswith("ended unexpectedly; this process exits too\n")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_the_others_by_name(victim):
    lines = [WAITS] * 3
    lines[victim] = kills("SIGSTOP")
    for status, text in end_of(*lines).values():
        assert status == 75
        assert text.startswith(f"process {victim} (host{victim}) ")
        assert text.endswith("sent no heartbeat for 2 s; this process exits too\n")


@pytest.mark.full
def test_a_process_that_seldom_comes_to_listen_still_learns_of_one_that_is_lost():
    slowly = "check = watch._check; watch._check = lambda: (time.sleep(1.5), check())"
    ends = end_of(kills("SIGSTOP"), f"{slowly}; {WAITS}")
    assert ends[1][0] == 75
    assert ends[1][1].startswith("process 0 (")


def test_a_process_whose_watch_fails_ends():
    ends = end_of(WAITS, f"watch._check = None; {WAITS}")
    assert ends[1][0] == ends[0][0] == 75
    assert ") cannot monitor the other processes; this process exits too\n" in ends[1][1]
    assert ends[0][1].startswith("process 1 (")


def test_a_process_that_hangs_says_so_itself_and_where():
    hang = "with watch.with_deadline(1, 'waiting for data'): time.sleep(30)"
    ends = end_of(WAITS, hang)
    for status, text in ends.values():
        assert status == 75
        assert "process 1 (" in text
        assert ") has been waiting for data for 1 s; this process exits too\n" in text
    assert "most recent call first" in ends[1][1]


def test_what_is_in_time_ends_nothing():
    line = "with watch.with_deadline(2, 'waiting'): pass\ntime.sleep(3)"
    assert end_of(line, line) == {0: (0, ""), 1: (0, "")}


@pytest.mark.parametrize(("given", "text"), [(75, ""), (2, "error: ")])
@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_in_one_process_ends_all(given, text, victim):
    lines = [WAITS] * 3
    lines[victim] = f"watch.fail({given}, 'failed: no such file'); watch.drain(); os._exit(9)"
    ends = end_of(*lines)
    assert ends.pop(victim) == (9, "")
    for i in ends:
        assert ends[i][0] == given
        assert ends[i][1].startswith(f"{text}process {victim} (")
        assert ") failed: no such file" in ends[i][1]


def test_a_process_that_fails_and_does_not_end_is_ended():
    ends = end_of(WAITS, f"watch.fail(75, 'failed'); {WAITS}")
    assert [status for status, _ in ends.values()] == [75, 75]


def test_strangers_are_sent_away():
    listener, address = transport.listen()

    async def both():
        accepting = asyncio.create_task(transport.accept(listener, 2, address["token"]))
        with pytest.raises(OSError, match=r"closed|reset"):
            await transport.connect(1, {**address, "token": "guessed"}, attempts=1)
        # One that says nothing does not delay the others.
        _, silent = await asyncio.open_connection("127.0.0.1", address["port"])
        (line,) = await transport.connect(1, json.loads(json.dumps(address)))
        accepted = await accepting
        assert line.process == 0
        assert [other.process for other in accepted] == [1]
        for one in (line, *accepted, silent):
            one.close()

    started = time.monotonic()
    asyncio.run(both())
    assert time.monotonic() - started < transport._HELLO_TIMEOUT


def test_a_process_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(transport, "_CONNECT_TIMEOUT", 0.2)
    listener, address = transport.listen()
    with pytest.raises(OSError, match=r"^processes \[1, 2\] did not connect$"):
        heartbeat.Peers(0, "abc", address, listener)
