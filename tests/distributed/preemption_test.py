import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from bloodjax.distributed import preemption
from bloodjax.errors import Stopped

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_is_noted(number):
    before = signal.getsignal(number)
    with preemption.graceful_shutdown() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", BOTH)
def test_what_leaves_nothing_to_save_is_broken_off(number):
    with preemption.graceful_shutdown() as stop:
        with pytest.raises(Stopped, match=r"^stopped in the middle$") as stopped:
            broken_off(stop, number)
        assert stopped.value.signal == number
        with pytest.raises(Stopped, match=r"^too late$"), stop.interruptible("too late"):
            pytest.fail("the signal had come before")


def broken_off(stop, number):
    with stop.interruptible("stopped in the middle"):
        os.kill(os.getpid(), number)
        time.sleep(60)


def test_outside_of_it_nothing_is_broken_off():
    with preemption.graceful_shutdown() as stop:
        with stop.interruptible("outer"), stop.interruptible("inner"):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM


def ended(body, *numbers):
    """Status, seconds and last line of a process that gets the signals one after another."""
    script = (
        f"import time, signal\nfrom bloodjax.distributed import preemption\n{textwrap.dedent(body)}"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()
        started = time.monotonic()
        for number in numbers:
            process.send_signal(number)
            process.stdout.readline()
        return process.wait(), time.monotonic() - started, process.stderr.read().splitlines()


# The main thread is in one call all the while, so that no handler of Python's is run.
IN_A_CALL = """
    import ctypes
    with preemption.graceful_shutdown({grace}) as stop:
        stop.on_immediate_exit(lambda: "step 7 of 9")
        print("ready", flush=True)
        ctypes.CDLL(None).sleep(60)
        ctypes.CDLL(None).sleep(60)
"""


@pytest.mark.parametrize("number", BOTH)
def test_after_the_time_of_grace_the_process_ends(number):
    status, seconds, lines = ended(IN_A_CALL.format(grace=1.0), number)
    assert status == 128 + number
    assert seconds > 0.9
    assert lines == ["stopped after 1 s of grace: step 7 of 9"]


@pytest.mark.parametrize(("first", "second"), [BOTH, BOTH[::-1], [signal.SIGINT] * 2])
def test_a_second_signal_ends_the_process_at_once(first, second):
    body = """
        with preemption.graceful_shutdown() as stop:
            stop.on_immediate_exit(lambda: "step 7 of 9")
            print("ready", flush=True)
            while not stop.signal:
                time.sleep(0.01)
            time.sleep(1)
            print("noted", flush=True)
            time.sleep(60)
    """
    status, seconds, lines = ended(body, first, second)
    assert status == 128 + first
    assert seconds < 30
    assert lines == ["stopped at once by a second signal: step 7 of 9"]


def work_on(seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    raise AssertionError("nothing has broken it off")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_python_ignored_is_raised_again(number):
    def body(stop):
        with stop.interruptible("broken off"):
            with contextlib.suppress(Stopped):  # as where an object is deleted
                os.kill(os.getpid(), number)
                work_on()
            assert stop.signal == number
            work_on()

    with (
        preemption.graceful_shutdown() as stop,
        pytest.raises(Stopped, match="broken off") as raised,
    ):
        body(stop)
    assert raised.value.signal == number


def test_what_a_callback_of_the_garbage_collector_ignores_is_raised_again_without_a_traceback(
    capsys, monkeypatch
):
    armed, raised, ignored = [], [], []

    def hook(unraisable):
        ignored.append(unraisable.exc_type)

    monkeypatch.setattr(sys, "unraisablehook", hook)

    def callback(phase, _):
        # Another thread may collect garbage, too; there the handler does not run.
        if armed and threading.current_thread() is threading.main_thread():
            armed.clear()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)  # the handler runs here or before, and raises
            raised.append("nothing")

    def body(stop):
        with stop.interruptible("broken off"):
            armed.append(True)
            gc.collect()
            assert stop.signal == signal.SIGTERM
            work_on()

    gc.callbacks.append(callback)
    try:
        with preemption.graceful_shutdown() as stop, pytest.raises(Stopped, match="broken off"):
            body(stop)
    finally:
        gc.callbacks.remove(callback)
    assert "Exception ignored" not in capsys.readouterr().err
    assert raised == []
    assert Stopped not in ignored
    assert sys.unraisablehook is hook


def test_other_exceptions_that_python_ignores_are_printed(monkeypatch):
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: ignored.append(found.exc_type))

    def callback(phase, _):
        raise ZeroDivisionError

    with preemption.graceful_shutdown():
        gc.callbacks.append(callback)
        gc.collect()
        gc.callbacks.remove(callback)
    assert ZeroDivisionError in ignored


def test_a_signal_that_the_main_thread_hears_of_first_is_one(monkeypatch):
    ends = []
    monkeypatch.setattr(preemption, "_exit", lambda number, message: ends.append(message))
    reader, writer = socket.socketpair()
    stop = preemption.ShutdownRequest(signal=signal.SIGTERM)
    watch = threading.Thread(target=preemption._watch, args=(stop, reader, 60.0))
    watch.start()
    time.sleep(2.5 * preemption._POLL_SECONDS)  # it has looked at what the main thread was told
    writer.send(bytes([signal.SIGTERM]))
    time.sleep(preemption._POLL_SECONDS)
    assert ends == []
    writer.send(bytes([signal.SIGTERM]))
    writer.close()
    watch.join()
    assert ends == ["stopped at once by a second signal: nothing was to be saved"]


def test_who_is_done_in_time_goes_on():
    with preemption.graceful_shutdown(0.3) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal
    time.sleep(1.0)  # the watch is over


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_that_a_part_did_not_act_on_is_for_the_whole(number):
    """A run of a sweep may have ended as the signal came; the next one must not start."""
    with preemption.graceful_shutdown() as whole:
        with preemption.graceful_shutdown() as part:
            os.kill(os.getpid(), number)
        assert (part.signal, whole.signal) == (number, number)
        with pytest.raises(Stopped, match="between"), whole.interruptible("between two parts"):
            pytest.fail("the signal had come before")
    with preemption.graceful_shutdown() as whole:
        with pytest.raises(Stopped, match="in the middle"):
            broken_off_in_a_part(number)
        assert whole.signal == 0, "the part has acted on it"


def broken_off_in_a_part(number):
    with preemption.graceful_shutdown() as part:
        broken_off(part, number)


def fail_while_catching():
    with preemption.graceful_shutdown():
        raise ZeroDivisionError


def test_handlers_are_put_back_after_an_error():
    before = {number: signal.getsignal(number) for number in BOTH}
    threads = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        fail_while_catching()
    assert {number: signal.getsignal(number) for number in before} == before
    assert threading.active_count() == threads
    outer = signal.set_wakeup_fd(-1)
    assert outer == -1


def test_other_threads_go_without():
    seen = []

    def work():
        with preemption.graceful_shutdown() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, signal.getsignal(signal.SIGINT))]
