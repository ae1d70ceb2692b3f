import types

import pytest

from bloodjax.training import timing
from bloodjax.training.timing import Interval, Stopwatch, Throughput


@pytest.fixture
def clock(monkeypatch):
    clock = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_an_interval_is_over_after_its_seconds_and_starts_again(clock):
    interval = Interval(5.0)
    clock.now += 5
    assert not interval.is_over()
    clock.now += 1
    assert interval.is_over()
    interval.restart()
    assert not interval.is_over()


def test_an_interval_of_no_seconds_never_ends(clock):
    interval = Interval(0.0)
    clock.now += 1e6
    assert not interval.is_over()


def test_a_stopwatch_counts_from_its_start(clock):
    stopwatch = Stopwatch(batch_size=16, step=10)
    clock.now += 4
    assert stopwatch.measure(step=15) == Throughput(seconds=4.0, images_per_second=20.0)
    clock.now += 4
    assert stopwatch.measure(step=15) == Throughput(seconds=8.0, images_per_second=10.0)
