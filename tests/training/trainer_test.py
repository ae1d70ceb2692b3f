"""Whole runs, most of them of one phase and without evaluation."""

import ast
import contextlib
import inspect
import io
import json
import logging
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import bloodjax
from bloodjax import run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.cli import console
from bloodjax.errors import Stopped, UserError
from bloodjax.evaluation import evaluator
from bloodjax.training import executor, factory, metric_writer, setup, trainer

from .. import compilations
from ..trees import assert_trees_equal
from .runs import history, last_state

ONE_EPOCH = {
    "phases.head.epochs": 0,
    "phases.finetune.epochs": 1,
    "phases.finetune.freeze": "none",
}


@pytest.fixture
def no_evaluation(monkeypatch):
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})


def stop_after(monkeypatch, n, number=signal.SIGINT):
    """Sends this process a signal when `n` steps have been taken; returns the count of steps."""
    taken = []
    original = executor.JitExecutor.train

    def counted(self, *args):
        taken.append(1)
        if len(taken) == n:
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(executor.JitExecutor, "train", counted)
    return taken


def test_a_workdir_holds_what_it_should(trained):
    for name in (
        *("config.json", "splits.json", "metrics.jsonl", "baseline.json", "report/index.html"),
        *("audit/audit.json", "audit/index.html", "evaluate/test/metrics.json"),
        *("evaluate/validation/predictions.csv", "checkpoints/21/state"),
    ):
        assert (trained / name).exists(), name
    assert len(list(trained.glob("tensorboard/events.out.tfevents.*"))) == 1
    assert not list(trained.rglob("*.tmp"))


def test_metrics_jsonl_has_a_line_for_each_epoch(trained):
    entries = [json.loads(line) for line in (trained / "metrics.jsonl").open()]
    assert [(e["epoch"], e["step"], e["phase"]) for e in entries] == [
        *((1, 7, "head"), (2, 14, "finetune"), (3, 21, "finetune"))
    ]
    for entry in entries:
        assert entry["event"] == "epoch"
        assert entry["seconds"] > 0
        assert entry["learning_rate"] > 0
        assert entry["train"].keys() == {"loss", "accuracy", "images_per_second"}
        assert entry["validation"].keys() == set(trainer.METRICS)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    number, trained, make_config, tmp_path, monkeypatch, no_evaluation
):
    config = make_config()
    with monkeypatch.context() as patch:
        # In the middle of the head's only epoch, or of the last one.
        taken = stop_after(patch, 3 if number == signal.SIGINT else 17, number)
        with pytest.raises(Stopped, match=r"stopped at step (3|17);") as stopped:
            run.train(config, tmp_path)
    assert stopped.value.signal == number
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest_step == len(taken)
    run.train(config, tmp_path)

    progress, state = last_state(tmp_path, config)
    expected_progress, expected = last_state(trained, config)
    assert progress == expected_progress
    assert_trees_equal(state, expected)
    assert history(tmp_path) == history(trained)


def test_a_finished_run_trains_no_more(trained, make_config, tmp_path, monkeypatch, no_evaluation):
    workdir = shutil.copytree(trained, tmp_path / "run")
    taken = stop_after(monkeypatch, -1)
    run.train(make_config(), workdir)
    assert taken == []
    assert history(workdir) == history(trained)
    assert_trees_equal(last_state(workdir, make_config()), last_state(trained, make_config()))


@pytest.fixture(scope="module")
def early(make_config, tmp_path_factory):
    """A run whose phases end by early stopping, with records of its phases and epochs.

    A signal stops it in the head's third epoch, while early stopping counts.
    """
    losses = {7: 1.0, 14: 2.0, 21: 3.0, 28: 5.0, 35: 4.0, 42: 4.5, 49: 4.2}
    config = make_config(
        **{
            "phases.head.epochs": 10,
            "phases.finetune.epochs": 10,
            "phases.finetune.learning_rate": 0.01,
            "early_stopping.patience": 2,
        }
    )
    workdir = tmp_path_factory.mktemp("early")
    seen = {"phases": [], "epochs": {}, "compilations": [], "workdir": workdir}

    class Watched(trainer.Trainer):
        def start_next_phase(self, progress):
            result = super().start_next_phase(progress)
            seen["phases"].append((self.step, jax.device_get(self.state.variables)))
            return result

        def validate(self, progress, throughput):
            loss = losses[self.step]
            with pytest.MonkeyPatch.context() as patch:
                figures = dict.fromkeys(trainer.METRICS, 0.5) | {"loss": loss}
                patch.setattr(trainer.metrics, "quick", lambda *_: figures)
                result = super().validate(progress, throughput)
            seen["epochs"][self.step] = jax.device_get(self.state.variables)
            seen["compilations"].append((progress.phase, seen["compiled"].count))
            return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Trainer", Watched)
        patch.setattr(evaluator, "finish", lambda *_: {})
        with pytest.MonkeyPatch.context() as inner:
            stop_after(inner, 17)
            with compilations.counted() as seen["compiled"], pytest.raises(Stopped):
                run.train(config, workdir)
        with compilations.counted() as seen["compiled"]:
            run.train(config, workdir)
    return seen


@pytest.mark.full
def test_early_stopping_ends_each_phase_after_its_patience(early):
    phases = [(e["step"], e["phase"]) for e in metric_writer.read_history(early["workdir"])]
    assert phases == [
        *((7, "head"), (14, "head"), (21, "head")),
        *((28, "finetune"), (35, "finetune"), (42, "finetune"), (49, "finetune")),
    ]


def test_a_phase_starts_from_the_best_weights_so_far(early):
    (step, start), (last, _) = early["phases"]
    assert (step, last) == (21, 49)
    assert_trees_equal(start, early["epochs"][7])


def test_the_head_phase_leaves_the_backbone_alone(early, make_config):
    start = jax.device_get(factory.variables(make_config(), 8))
    after = early["epochs"][7]
    for kind in ("params", "batch_stats"):
        assert_trees_equal(after[kind]["backbone"], start[kind]["backbone"])
    kernels = [v["params"]["head"]["logits"]["kernel"] for v in (start, after)]
    assert not np.array_equal(*kernels)


def test_frozen_batchnorm_stays_bit_identical(early):
    before, after = early["epochs"][7], early["epochs"][49]
    assert_trees_equal(after["batch_stats"], before["batch_stats"])
    flat_before, flat_after = (flatten_dict(v["params"]) for v in (before, after))
    norms = {path[:-1] for path in flatten_dict(before["batch_stats"])}
    assert any(path[0] == "backbone" for path in norms)
    for path, value in flat_before.items():
        same = np.array_equal(value, flat_after[path])
        assert same == (path[:-1] in norms), path


def test_nothing_is_compiled_after_a_phase_s_first_step(early):
    # The run that was stopped, then the one that went on.
    assert early["compilations"] == [(0, 1), (0, 1), (0, 1), *[(1, 2)] * 4]


@pytest.fixture(scope="module")
def one_epoch(make_config, tmp_path_factory):
    """The workdir of a run without validation or test split, what it returned, what it printed."""
    workdir = tmp_path_factory.mktemp("one")
    config = make_config(**ONE_EPOCH, **{"data.validation": "0", "data.test": "0"})
    with contextlib.redirect_stderr(io.StringIO()) as printed, lines_shown():
        result = run.train(config, workdir)
    return config, workdir, result, printed.getvalue()


@contextlib.contextmanager
def lines_shown():
    """As in a command; the logger is then as it was before."""
    logger = logging.getLogger("bloodjax")
    before = logger.handlers, logger.propagate, logger.level
    console.show_lines()
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])


@pytest.mark.full
def test_a_run_may_do_without_validation_and_test(one_epoch):
    _, workdir, result, _ = one_epoch
    assert result == {}
    assert "validation" not in metric_writer.read_history(workdir)[0]
    assert (workdir / "report/index.html").exists()
    assert bloodjax.load(workdir).step == 10


def test_a_run_prints_a_line_an_epoch_where_there_is_no_terminal(one_epoch):
    _, workdir, _, printed = one_epoch
    lines = [line for line in printed.splitlines() if not line.startswith("WARNING:absl")]
    assert len(lines) == 9
    assert lines[0] == "from random weights"
    assert lines[1].startswith("data: ")
    assert lines[4].startswith("epoch 1 (finetune): loss ")
    assert [line.partition(":")[0] for line in lines[5:8]] == [
        *["no validation split"] * 2,
        "labels to look at again",
    ]
    assert lines[8] == f"report: {workdir}/report/index.html"
    assert not {"\r", "\x1b"} & set(printed)


@pytest.mark.full
def test_pmap_and_jit_train_the_same(one_epoch, make_config, tmp_path, no_evaluation):
    _, jit_workdir, *_ = one_epoch
    config = make_config(
        **ONE_EPOCH, **{"data.validation": "0", "data.test": "0", "parallel": "pmap"}
    )
    run.train(config, tmp_path)
    start = jax.device_get(factory.variables(config, 8))
    (_, jit_state), (_, pmap_state) = last_state(jit_workdir, config), last_state(tmp_path, config)
    assert pmap_state.step == jit_state.step

    def agree(start, one, other):
        # Adam makes whole steps of rounding errors where a gradient is all but zero, so that single
        # weights differ by as much; other random numbers would give a ratio of about 1.
        assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(one - start)

    jax.tree.map(agree, start, jit_state.variables, pmap_state.variables)
    (jit_epoch,), (pmap_epoch,) = history(jit_workdir), history(tmp_path)
    np.testing.assert_allclose(pmap_epoch["train"]["loss"], jit_epoch["train"]["loss"], rtol=1e-5)
    assert pmap_epoch["train"]["accuracy"] == jit_epoch["train"]["accuracy"]


def test_a_workdir_with_another_config(trained, make_config):
    before = (trained / "config.json").read_bytes()
    message = rf"--workdir={trained}: contains a run with another config \(seed: 0 -> 1\)"
    with pytest.raises(UserError, match=message):
        run.train(make_config(seed=1), trained)
    assert (trained / "config.json").read_bytes() == before


def test_a_workdir_that_cannot_be_written_to(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="/file/run: Not a directory"):
        run.train(make_config(), tmp_path / "file/run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 128}, "batch_size is 128, but the training split has 112 images"),
        ({"batch_size": 12}, "batch_size is 12, expected a multiple of the 8 devices"),
        ({"data.train": "nowhere.npz"}, r"nowhere\.npz: no such file"),
    ],
)
def test_a_start_that_fails_can_be_put_right(changes, message, make_config, tmp_path):
    with pytest.raises(UserError, match=message):
        run.train(make_config(**changes), tmp_path)
    assert not (tmp_path / "config.json").exists()
    assert not (tmp_path / "checkpoints").exists()


def test_of_missing_images_only_the_error_is_said(make_config, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(setup.console, "log_info", said.append)
    with pytest.raises(UserError, match="no such file"):
        run.train(make_config(**{"data.train": "nowhere.npz"}), tmp_path)
    assert said == []


def test_the_trainer_changes_only_its_step_and_state():
    tree = ast.parse(inspect.getsource(trainer.Trainer))
    changed = {
        node.attr
        for method in ast.walk(tree)
        if isinstance(method, ast.FunctionDef) and method.name != "__init__"
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert changed == {"step", "state"}
