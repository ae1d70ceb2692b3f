"""Tests of benchmarks/pairing.py: with stand-ins for the contenders, and with ourselves."""

import pytest

from benchmarks import __main__ as command
from benchmarks import pairing
from benchmarks.tasks import Task

TASK = Task("train", "simple_cnn", 8, 32)


SECONDS = {"ours": 0.5, "slow": 2.0, "fast": 0.25}


class StandIn:
    """A contender with a known step time; records the order of requests."""

    asked, closed = [], []

    def __init__(self, name, cache=""):
        self.name, self.cache = name, cache

    def ask(self, task=None, steps=None):
        if self.name == "broken":
            return {"error": "ImportError: not here"}
        if task:
            return {"seconds": 1.0, "about": {"version": "1"}}
        self.asked.append(self.name)
        return {"seconds": SECONDS[self.name] * steps, "peak_bytes": 7}

    def close(self):
        self.closed.append(self.name)


@pytest.fixture
def result():
    StandIn.asked, StandIn.closed = [], []
    return pairing.compare(TASK, ["ours", "broken", "slow", "fast"], 0.0, StandIn)


def test_ratios_are_of_the_first_ones_time_and_anothers(result):
    assert result["contenders"]["ours"]["median"] == 0.5
    assert result["ratios"]["slow"] == {"median": 0.25, "low": 0.25, "high": 0.25}
    assert result["ratios"]["fast"]["median"] == 2.0


def test_what_cannot_run_is_named_and_left_out(result):
    assert result["contenders"]["broken"] == {"error": "ImportError: not here"}
    assert "broken" not in result["ratios"]
    assert "left out: ImportError: not here" in command.summary(result)
    assert sorted(StandIn.closed) == ["broken", "fast", "ours", "slow"]


def test_each_goes_first_in_turn(result):
    turns = StandIn.asked[3::2]  # The first three are warm-ups, as is the first of each turn.
    assert turns == StandIn.asked[4::2]
    assert turns[0::3] == ["ours", "slow", "fast"]
    assert len(turns) == 3 * pairing.MIN_ROUNDS


def test_starts_are_cold_and_then_warm():
    caches = []

    class Starting(StandIn):
        def ask(self, task):
            assert task["kind"] == "train"
            caches.append(self.cache)
            return super().ask(task=task)

    task = Task("start", "simple_cnn", 8, 32)
    result = pairing.compare_starts(task, ["ours", "broken", "slow"], 0.0, Starting)
    assert result["task"]["kind"] == "start"
    assert result["contenders"]["broken"] == {"error": "ImportError: not here"}
    ours = result["contenders"]["ours"]
    assert len(ours["cold_seconds"]) == len(ours["step_seconds"]) == 1
    assert ours["median"] == ours["step_seconds"][0]
    assert set(result["ratios"]) == {"slow"}
    # Both starts of a contender share a cache, which no other contender uses.
    assert caches[0] == caches[1]
    assert len(set(caches)) == 3
    assert "cold" in command.summary(result)


@pytest.mark.slow
def test_a_second_start_of_ours_compiles_nothing():
    task = Task("start", "simple_cnn", 8, 32)
    found = pairing.compare_starts(task, ["bloodjax"], 0.0)["contenders"]["bloodjax"]
    assert 0 < found["median"] < found["cold_seconds"][0]


def test_nobody_who_can_run_is_no_endless_loop():
    result = pairing.compare(TASK, ["broken"], 1.0, StandIn)
    assert result["ratios"] == {}


@pytest.mark.slow
def test_a_real_process_of_ours_is_timed_and_an_unknown_network_named():
    result = pairing.compare(TASK, ["bloodjax"], 0.0)
    found = result["contenders"]["bloodjax"]
    assert len(found["step_seconds"]) == pairing.MIN_ROUNDS
    assert 0 < found["median"] < found["start_seconds"]
    assert found["about"]["platform"] == "cpu"
    assert found["peak_bytes"] > 1e8
    result = pairing.compare(Task("train", "simple_cn", 8), ["bloodjax"], 0.0)
    assert "unknown model" in result["contenders"]["bloodjax"]["error"]
