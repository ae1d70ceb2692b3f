import io
import json
import logging

import pytest
import rich.console

from bloodjax.cli import console
from bloodjax.training import metric_writer


def entry(step):
    return {"event": "epoch", "step": step, "train": {"loss": step / 2}}


def steps(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]


@pytest.fixture
def screen(monkeypatch):
    """Where lines go; a terminal if `is_terminal` is set."""

    def make(is_terminal):
        file = io.StringIO()
        screen = rich.console.Console(
            file=file, force_terminal=is_terminal, soft_wrap=True, width=120
        )
        monkeypatch.setattr(console, "_console", screen)
        return file

    return make


def test_history_is_what_was_written(tmp_path):
    assert metric_writer.read_history(tmp_path) == []
    with metric_writer.MetricWriter(tmp_path, 0) as log:
        log.write(entry(1))
        assert metric_writer.read_history(tmp_path) == [entry(1)]  # at once, not when it is closed
        log.write(entry(2))
    assert metric_writer.read_history(tmp_path) == [entry(1), entry(2)]


def test_events_hold_the_numbers_by_their_path(tmp_path):
    with metric_writer.MetricWriter(tmp_path, 0) as log:
        log.write(entry(1))
    (events,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes()
    assert b"epoch" not in events.read_bytes()


def test_going_on_drops_what_will_be_trained_again(tmp_path):
    with metric_writer.MetricWriter(tmp_path, 0) as log:
        for step in (10, 20, 30):
            log.write(entry(step))
    with metric_writer.MetricWriter(tmp_path, 20) as log:
        assert steps(tmp_path) == [10, 20]
        log.write(entry(25))
    assert steps(tmp_path) == [10, 20, 25]


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    text = json.dumps(entry(1)) + "\n" + json.dumps(entry(2))[:-4]
    (tmp_path / "metrics.jsonl").write_text(text)
    assert metric_writer.read_history(tmp_path) == [entry(1)]
    with metric_writer.MetricWriter(tmp_path, 2) as log:
        log.write(entry(3))
    assert metric_writer.read_history(tmp_path) == [entry(1), entry(3)]


def test_a_damaged_line_is_left_out_and_said(tmp_path, capsys):
    whole = [json.dumps(entry(step)) for step in (1, 3)]
    for damaged in ("{", "[1]", '{"event": "epoch"}', "\0", "[" * 100_000):
        (tmp_path / "metrics.jsonl").write_text("\n".join([whole[0], damaged, whole[1], ""]))
        assert metric_writer.read_history(tmp_path) == [entry(1), entry(3)]
        assert "metrics.jsonl: line 2 is damaged and left out" in capsys.readouterr().err


def show(figures):
    with console.ProgressBar("epoch 1", steps=4, done=1) as bar:
        bar.update(3, **figures)
        bar._bar.refresh()


FIGURES = {"loss": 0.25, "accuracy": 0.5, "images_per_second": 1234.0}


def test_the_bar_shows_the_figures_on_a_terminal(screen):
    file = screen(True)
    show(FIGURES)
    for part in ("epoch 1", "3/4", "loss 0.2500", "accuracy 0.5000", "1,234 images/s"):
        assert part in file.getvalue()


def test_the_bar_is_silent_elsewhere(screen):
    file = screen(False)
    show(FIGURES)
    assert file.getvalue() == ""


def test_say_prints_one_plain_line(screen):
    file = screen(False)
    message = "[bold] " + "word " * 50 + "end"
    console.log_info(message)
    assert file.getvalue() == message + "\n"


def test_warnings_of_the_library_go_to_the_same_place(screen, monkeypatch):
    logger = logging.getLogger("bloodjax")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    file = screen(False)
    console.route_warnings()
    console.route_warnings()
    logging.getLogger("bloodjax.data.formats.folders").warning("skipped %d images", 3)
    assert file.getvalue().count("skipped 3 images") == 1


def test_a_bar_says_what_it_is_about():
    with console.ProgressBar("one", 3, 0) as bar:
        bar.describe("two")
        assert bar._bar.tasks[0].description == "two"


def test_history_of_one_event(tmp_path):
    skipped = {"event": "skipped", "step": 2, "skipped": 1}
    with metric_writer.MetricWriter(tmp_path, 0) as log:
        for one in (entry(1), skipped, entry(2)):
            log.write(one)
    assert metric_writer.read_history(tmp_path, "epoch") == [entry(1), entry(2)]
    assert metric_writer.read_history(tmp_path, "skipped") == [skipped]
