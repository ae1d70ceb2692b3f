import os
import signal
import threading

import pytest

from bloodjax import signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted(number):
    before = signal.getsignal(number)
    with signals.catch() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert signal.getsignal(number) is before


@pytest.fixture
def python_s_own_handler():
    # A process started in the background may have inherited that SIGINT is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_s_own_handler")
def test_the_second_signal_ends_the_process_as_ever():
    with signals.catch():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def fail_while_catching():
    with signals.catch():
        raise ZeroDivisionError


def test_handlers_are_put_back_after_an_error():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(ZeroDivisionError):
        fail_while_catching()
    assert {number: signal.getsignal(number) for number in before} == before


def test_other_threads_go_without():
    seen = []

    def work():
        with signals.catch() as stop:
            seen.append((stop.signal, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, signal.getsignal(signal.SIGINT))]
