import pytest

from bloodjax import distributed
from bloodjax.tracking import TrackerGroup
from bloodjax.training.metric_writer import MetricWriter, read_history


class Group(TrackerGroup):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.got = []

    def log_metrics(self, values, step):
        self.got.append((step, dict(values)))


def entry(step, loss):
    return {"event": "epoch", "step": step, "phase": "head", "train": {"loss": loss}, "seconds": 2}


def test_trackers_get_each_entry(tmp_path):
    trackers = Group()
    with MetricWriter(tmp_path, 0, trackers=trackers) as writer:
        writer.write(entry(7, 0.5))
        writer.write({"event": "rollback", "step": 7, "from": 10, "rate": 0.5})
    assert trackers.got == [
        (7, {"train/loss": 0.5, "seconds": 2}),
        (7, {"rollback/from": 10, "rollback/rate": 0.5}),
    ]


def test_a_resumed_run_gives_trackers_what_they_may_lack(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        for step in (7, 14):
            writer.write(entry(step, 1 / step))
    trackers = Group()
    with MetricWriter(tmp_path, 7, trackers=trackers) as writer:
        writer.write(entry(14, 0.25))
    assert [(step, values["train/loss"]) for step, values in trackers.got] == [
        (7, 1 / 7),
        (14, 0.25),
    ]
    assert [each["train"]["loss"] for each in read_history(tmp_path)] == [1 / 7, 0.25]


@pytest.mark.parametrize("tensorboard", [True, False])
def test_tensorboard_can_be_switched_off(tmp_path, tensorboard):
    with MetricWriter(tmp_path, 0, tensorboard=tensorboard) as writer:
        writer.write(entry(7, 0.5))
    assert (tmp_path / "tensorboard").exists() == tensorboard
    assert len(read_history(tmp_path)) == 1


def test_only_the_primary_process_has_trackers(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    trackers = Group()
    with MetricWriter(tmp_path, 0, trackers=trackers) as writer:
        writer.write(entry(7, 0.5))
    assert trackers.got == []
    assert not list(tmp_path.iterdir())


def test_an_epoch_that_is_validated_again_is_logged_once(tmp_path):
    events = [{"event": "rollback", "step": 7}, {"event": "skipped", "step": 7}, entry(7, 0.5)]
    for unfinished in (False, True):
        with MetricWriter(tmp_path, 7, unfinished=unfinished) as writer:
            for event in events[unfinished:]:
                writer.write(event)
    assert [each["event"] for each in read_history(tmp_path)] == ["rollback", "skipped", "epoch"]
