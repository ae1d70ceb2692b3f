import io
import json

import pytest

from bloodjax.tracking import options, worker
from bloodjax.tracking.record import Record


class FakeTracker:
    """Keeps what it gets; fails while `error` is set."""

    def __init__(self, opened, path):
        self.opened, self.record = opened, Record(path, "here")
        self.error, self.got = None, []

    def open(self):
        self._take("open")

    def log_metrics(self, values, step):
        self._take(("metrics", values, step))

    def log_results(self, values, step):
        self._take(("results", values, step))

    def log_report(self, path):
        self._take(("report", path.name))

    def log_model(self, folder):
        self._take(("model", folder.name))

    def close(self, status):
        self._take(("close", status))

    def _take(self, item):
        if self.error is not None:
            raise self.error
        self.got.append(item)


def message(step, digest=None):
    return {"metrics": {"loss": 1.0 / step}, "step": step, "digest": digest or f"d{step}"}


@pytest.fixture
def tracker(tmp_path):
    return FakeTracker(None, tmp_path / "fake.json")


@pytest.fixture
def time():
    return [0.0]


@pytest.fixture
def answers():
    return []


@pytest.fixture
def sender(tracker, answers, time):
    return worker.Sender(tracker, answers.append, lambda: time[0])


def test_messages_are_sent_in_order_and_then_the_record_is_closed(sender, tracker, answers):
    for step in (1, 2):
        sender.add(message(step))
    sender.add({"report": "/a/index.html", "digest": "r"})
    sender.add({"model": "/a/model", "digest": "m"})
    sender.add({"results": {"accuracy": 0.9}, "step": 2, "digest": "s"})
    sender.finish("stopped")
    assert tracker.got == [
        "open",
        ("metrics", {"loss": 1.0}, 1),
        ("metrics", {"loss": 0.5}, 2),
        ("report", "index.html"),
        ("model", "model"),
        ("results", {"accuracy": 0.9}, 2),
        ("close", "stopped"),
    ]
    assert answers == [{"unsent": 0}]


def test_a_message_is_sent_once_over_all_starts(sender, tracker, tmp_path):
    sender.add(message(1))
    sender.add(message(1))
    sender.send()
    again = FakeTracker(None, tmp_path / "fake.json")
    resumed = worker.Sender(again, print)
    for step in (1, 2):
        resumed.add(message(step))
    resumed.send()
    assert [step for _, _, step in tracker.got[1:]] == [1]
    assert [step for _, _, step in again.got[1:]] == [2]


def test_a_tracker_that_is_down_is_reported_once_and_tried_again_each_minute(
    sender, tracker, answers, time
):
    tracker.error = ConnectionError("no route\nto host")
    sender.add(message(1))
    sender.send()
    assert answers == [{"problem": "ConnectionError: no route to host"}]
    sender.add(message(2))
    assert not sender.is_due
    time[0] = worker.RETRY_SECONDS
    assert sender.is_due
    sender.send()
    assert len(answers) == 1, "one warning"
    tracker.error, time[0] = None, 2 * worker.RETRY_SECONDS
    sender.send()
    assert answers[1:] == [{"working": True}]
    assert [step for _, _, step in tracker.got[1:]] == [1, 2]


def test_what_was_not_sent_is_counted(sender, tracker, answers):
    tracker.error = OSError("full")
    for step in (1, 2):
        sender.add(message(step))
    sender.finish("finished")
    assert answers == [{"problem": "OSError: full"}, {"unsent": 2}]


def test_a_tracker_that_has_just_failed_does_not_hold_up_the_end(sender, tracker, answers):
    tracker.error = OSError("down")
    sender.add(message(1))
    sender.send()
    tracker.error = AssertionError("tried again")
    sender.finish("finished")
    assert answers == [{"problem": "OSError: down"}, {"unsent": 1}]


def test_a_closing_that_fails_is_a_problem_and_no_error(sender, tracker, answers):
    sender.send()
    tracker.error = TimeoutError("late")
    sender.finish("finished")
    assert answers == [{"problem": "TimeoutError: late"}, {"unsent": 0}]


def test_pending_messages_are_bounded(sender, monkeypatch):
    monkeypatch.setattr(worker, "_MOST_PENDING", 2)
    for step in (1, 2, 3):
        sender.add(message(step))
    assert [each["step"] for each in sender.pending] == [1, 2]


@pytest.fixture
def made(monkeypatch):
    """Lets `main` make a `FakeTracker`, which it returns in a list."""
    trackers = []

    def create(opened, path):
        trackers.append(FakeTracker(opened, path))
        return trackers[0]

    module = type("Module", (), {"Fake": staticmethod(create)})
    monkeypatch.setitem(options.DOORS, "fake", ("fake", "fake", "Fake"))
    monkeypatch.setattr(worker.importlib, "import_module", {"fake": module}.__getitem__)
    return trackers


def opening(folder):
    values = {"project": "p", "run_name": "r", "tags": [], "parameters": {"a.b": 1}}
    return {"open": {"folder": str(folder), **values}}


def test_the_process_sends_what_arrives(made, tmp_path):
    lines = [opening(tmp_path), message(1), {"finish": "finished"}]
    out = io.StringIO()
    worker.main("fake", io.StringIO("\n".join(map(json.dumps, lines)) + "\n"), out)
    assert made[0].opened.parameters == {"a.b": 1}
    assert made[0].got == ["open", ("metrics", {"loss": 1.0}, 1), ("close", "finished")]
    assert json.loads(out.getvalue()) == {"unsent": 0}


def test_the_process_of_a_killed_run_sends_what_it_has_and_ends(made, tmp_path, monkeypatch):
    timers = []
    monkeypatch.setattr(worker.threading, "Timer", lambda *args: timers.append(args) or Idle())
    lines = [json.dumps(line) for line in (opening(tmp_path), message(1), message(2))]
    worker.main("fake", io.StringIO("\n".join(lines)[:-5]), io.StringIO())
    assert made[0].got == ["open", ("metrics", {"loss": 1.0}, 1), ("close", "stopped")]
    assert timers[0][1] == worker.os._exit


class Idle:
    daemon = False

    def start(self):
        pass
