import inspect
import io
import json
import logging
import sys
import types

import pytest
import rich.console

from bloodjax.cli import console
from bloodjax.training import metric_writer


def entry(step):
    return {"event": "epoch", "step": step, "train": {"loss": step / 2}}


def steps(workdir):
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]


@pytest.fixture
def loggers(monkeypatch):
    """The logger "bloodjax" and the root logger, not configured; restored after the test."""
    logger, root = logging.getLogger("bloodjax"), logging.getLogger()
    for one in (logger, root):
        monkeypatch.setattr(one, "handlers", [])
    level = root.level
    logger.setLevel(logging.NOTSET)
    root.setLevel(logging.WARNING)
    yield logger, root
    root.setLevel(level)


@pytest.fixture
def screen(monkeypatch, loggers):
    """Where lines go; a terminal if `is_terminal` is set."""

    def make(is_terminal):
        file = io.StringIO()
        screen = rich.console.Console(
            file=file, force_terminal=is_terminal, soft_wrap=True, width=120
        )
        monkeypatch.setattr(console, "_console", screen)
        console.show_lines()
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


def test_a_damaged_line_is_left_out_and_said(tmp_path, capsys, loggers):
    console.show_lines()
    whole = [json.dumps(entry(step)) for step in (1, 3)]
    for damaged in ("{", "[1]", '{"event": "epoch"}', "\0", "[" * 100_000):
        (tmp_path / "metrics.jsonl").write_text("\n".join([whole[0], damaged, whole[1], ""]))
        assert metric_writer.read_history(tmp_path) == [entry(1), entry(3)]
        assert "metrics.jsonl: line 2 is damaged and was skipped" in capsys.readouterr().err


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


def test_a_line_is_what_it_says_and_nothing_that_a_terminal_obeys(screen):
    file = screen(False)
    console.log_info("[red]$x^2$ :smile: \x1b[31m嗜 caf\udce9\u200d")
    assert file.getvalue() == "[red]$x^2$ :smile: \\x1b[31m嗜 caf\\udce9\u200d\n"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(5, "EIO")])
def test_a_line_that_cannot_be_shown_is_lost_and_the_run_is_not(screen, monkeypatch, error):
    def fail(*_, **__):
        raise error

    screen(False)
    monkeypatch.setattr(console._console, "print", fail)
    console.log_info("one")
    error = BrokenPipeError()
    with pytest.raises(BrokenPipeError):  # `command.run` ends the process then
        console.log_info("two")


def test_numbers_have_their_noun():
    counted = [console.counted(n, "image") for n in (0, 1, 2, 1200)]
    assert counted == ["0 images", "1 image", "2 images", "1,200 images"]
    assert console.counted(2, "class", "classes") == "2 classes"


@pytest.mark.parametrize(
    ("rate", "end"),
    [(0.0, ""), (0.4, "; 0.4 images/s"), (9.96, "; 10.0 images/s"), (1234.5, "; 1,234 images/s")],
)
def test_an_epoch_that_was_trained_before_has_no_speed(rate, end):
    train = {"loss": 1.0, "accuracy": 0.5, "images_per_second": rate}
    line = metric_writer.epoch_line({"epoch": 3, "phase": "head", "train": train})
    assert line == f"epoch 3 (head): loss 1.0000, accuracy 0.5000{end}"


def test_warnings_of_the_library_go_to_the_same_place(screen):
    file = screen(False)
    console.show_lines()
    console.show_lines()
    logging.getLogger("bloodjax.data.formats.folders").warning("skipped %d images", 3)
    assert file.getvalue().count("warning: skipped 3 images") == 1


def test_a_level_silences_lines_and_bars(screen, loggers):
    file = screen(True)
    loggers[0].setLevel(logging.WARNING)
    console.log_info("a line")
    show(FIGURES)
    assert file.getvalue() == ""


def test_a_library_shows_its_lines_by_default(screen, loggers, capsys):
    console.log_info("nothing is set up")
    console.show_lines_by_default()
    console.log_info("a line")
    console.show_lines_by_default()
    console.log_info("another")
    assert capsys.readouterr().err == "a line\nanother\n"


def test_a_level_set_before_is_kept(loggers, capsys):
    loggers[1].handlers.clear()  # pytest's
    loggers[0].setLevel(logging.WARNING)
    console.show_lines_by_default()
    console.log_info("a line")
    loggers[0].warning("careful")
    assert capsys.readouterr().err == "warning: careful\n"


@pytest.mark.parametrize("logger", ["bloodjax", "root"])
def test_an_application_that_handles_the_lines_gets_them_instead(loggers, capsys, logger):
    file = io.StringIO()
    chosen = logging.getLogger(None if logger == "root" else logger)
    chosen.addHandler(logging.StreamHandler(file))
    chosen.setLevel(logging.INFO)
    console.show_lines_by_default()
    console.log_info("a line")
    show(FIGURES)
    assert file.getvalue() == "a line\n"
    assert capsys.readouterr().err == ""


def test_handlers_for_warnings_alone_do_not_hide_the_lines(loggers, capsys):
    # As in some hosted notebooks, where the root logger has a handler from the start.
    loggers[1].addHandler(logging.StreamHandler(io.StringIO()))
    console.show_lines_by_default()
    console.log_info("a line")
    assert capsys.readouterr().err == "a line\n"


def test_a_line_names_the_module_that_logged_it(loggers, caplog):
    caplog.set_level(logging.INFO)
    loggers[1].addHandler(caplog.handler)
    inspect.unwrap(console.log_info)("a line")
    assert [record.module for record in caplog.records] == ["console_test"]


class Cell:
    """What a notebook shows: a list of contents for each display."""

    def __init__(self):
        self.execution_count, self.displays = 1, []

    def display(self, content, *, raw, display_id):
        assert (raw, display_id) == (True, True)
        shown = [content]
        self.displays.append(shown)
        return types.SimpleNamespace(update=lambda content, raw: shown.append(content))

    @property
    def texts(self):
        return [content.get("text/html", "") for content in self.displays[-1]]


@pytest.fixture
def notebook(monkeypatch, loggers):
    cell = Cell()
    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython, module.display = lambda: cell, cell.display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(console, "_console", rich.console.Console(force_jupyter=True))
    monkeypatch.setattr(console._NotebookCell, "_EVERY", 0.0)
    monkeypatch.setattr(console._NotebookCell, "_places", {})
    console.show_lines_by_default()
    return cell


def test_in_a_notebook_the_bar_is_replaced_in_its_cell(notebook):
    show(FIGURES)
    bar = 'epoch 1 <progress value="3" max="4"></progress> 3/4  loss 0.2500 '
    assert notebook.texts[-2].startswith(bar)
    assert notebook.displays[-1][-1] == {"text/plain": ""}  # it goes when the epoch ends


def test_in_a_notebook_the_bars_of_a_cell_share_a_place(notebook):
    show(FIGURES)
    show(FIGURES)
    assert len(notebook.displays) == 1
    notebook.execution_count += 1
    show(FIGURES)
    assert len(notebook.displays) == 2


def test_in_a_notebook_a_bar_changes_a_few_times_a_second(notebook, monkeypatch):
    monkeypatch.setattr(console._NotebookCell, "_EVERY", 1e9)
    with console.ProgressBar("<one>", 3, 0) as bar:
        bar.advance(1)
        bar.advance(2)
        bar.advance(3)
    assert [text[:40] for text in notebook.texts] == [
        "",
        '&lt;one&gt; <progress value="0" max="3">',
        '&lt;one&gt; <progress value="3" max="3">',
        "",
    ]


def test_in_a_notebook_lines_are_its_text_and_a_level_silences_all(notebook, capsys, loggers):
    console.log_info("a line")
    loggers[0].setLevel(logging.WARNING)
    console.log_info("another")
    show(FIGURES)
    assert capsys.readouterr().out == "a line\n"
    assert not notebook.displays


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


def test_a_closed_pipe_ends_the_command_and_not_the_process():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        type(console._console)(file=Closed()).print("line")
