"""Tests of bloodjax/tuning/sweep.py, with a stand-in for training."""

import errno
import json
import math
import shutil

import pytest

from bloodjax import config as config_lib
from bloodjax.data import fingerprint
from bloodjax.errors import Stopped, UserError
from bloodjax.training import input_pipeline
from bloodjax.training.workdir import open_config
from bloodjax.tuning import choice, log_uniform

pytest.importorskip("optuna", reason="needs the extra [sweep]")

from bloodjax.tuning import locks, outcome, sweep
from bloodjax.tuning.study import FAILED, PRUNED, RUNNING
from bloodjax.tuning.sweep import Options, Sweep

RATE = "phases.finetune.learning_rate"
SPACE = {RATE: log_uniform(1e-5, 1e-1), "loss.label_smoothing": choice(0.0, 0.1)}
EPOCHS = 3  # of the config: 1 and 2


class Killed(BaseException):
    """Stands for a signal that ends the worker at once."""


def loss(config, epoch):
    """The stand-in's validation loss: best at a rate of 1e-3."""
    rate, smoothing = config.phases.finetune.learning_rate, config.loss.label_smoothing
    return abs(math.log10(rate) + 3) + smoothing + 1 / epoch


def train(config, workdir, splits, ends_after, each=lambda number, epoch: None):
    """Writes the log and the checkpoints of a run, and goes on where it was stopped."""
    assert config_lib.load_json(workdir / "config.json") == config
    saved = json.loads((workdir / "splits.json").read_text())
    assert saved["classes"] == ["a", "b"]
    hashes = fingerprint.of_images(splits.train.images)
    assert saved["pixels"] == {"train": fingerprint.to_text(hashes)}
    checkpoints = workdir / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    for epoch in range(1 + len(list(checkpoints.iterdir())), EPOCHS + 1):
        each(int(workdir.name), epoch)
        entry = {"event": "epoch", "step": 7 * epoch, "epoch": epoch}
        entry["validation"] = {"loss": loss(config, epoch)}
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        (checkpoints / str(entry["step"])).mkdir()
        if ends_after(entry):
            return


def with_each(each):
    return lambda *arguments: train(*arguments, each=each)


@pytest.fixture
def no_page(monkeypatch):
    """Leaves out the page, which takes a second."""
    monkeypatch.setattr(outcome, "write", lambda *_: None)


@pytest.fixture
def new(tmp_path, make_config, splits, no_page):
    def open_sweep(trials=4, name="sweep", space=SPACE, changes=None, **options):
        storage = f"journal:///{tmp_path / name}.log"
        config = make_config(**(changes or {}))
        return Sweep(config, space, tmp_path / name, Options(storage, trials, **options))

    return open_sweep


def table(one):
    return [(t.number, t.state, t.value, t.values, t.epochs) for t in one.study.trials()]


def test_the_first_trial_has_the_configs_own_values(new, splits):
    one = new()
    one.work(train)
    first, *others = one.study.trials()
    assert first.values == one.own
    assert first.value == loss(one.config, EPOCHS)
    assert all(trial.values != one.own for trial in others)
    assert splits == [(32, False)]  # drawn once, and read once
    for trial in one.study.trials():
        stored = config_lib.load_json(one.folder(trial.number) / "config.json")
        assert stored == one.trial_config(trial.values)
        assert (one.folder(trial.number) / "audit" / "audit.json").exists()
    assert one.study.best().value == min(trial.value for trial in others if trial.value)


def test_splits_of_a_command_that_failed_are_drawn_again(new, splits, monkeypatch, tmp_path):
    def fail(*_):
        raise UserError("no storage")

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "open_study", fail)
        with pytest.raises(UserError, match="no storage"):
            new()
    assert (tmp_path / "sweep/splits.json").exists()
    shutil.rmtree(tmp_path / "sweep/audit")
    new(changes={"seed": 7})
    assert splits == [(32, False), (32, False)]


def test_a_folder_of_a_sweep_is_none_for_a_run(new, tmp_path):
    one = new()
    with pytest.raises(UserError, match=r"sweep: contains a sweep, expected another --workdir"):
        open_config(one.config, tmp_path / "sweep")


def test_only_who_draws_the_splits_reads_under_the_lock(new, monkeypatch):
    prepare, locked = input_pipeline.prepare_splits, []

    def read(config, workdir, resumes):
        claim = locks.claim(workdir / "lock")
        locked.append(claim is None)
        if claim is not None:
            claim.close()
        return prepare(config, workdir, resumes)

    monkeypatch.setattr(input_pipeline, "prepare_splits", read)
    new()
    new()
    assert locked == [True, False]


def test_the_same_command_goes_on_and_counts_all(new):
    new(trials=2).work(train)
    assert len(table(new(trials=2))) == 2
    one = new(trials=5)
    one.work(train)
    other = new(trials=5, name="other")
    other.work(train)
    assert table(one) == table(other)


@pytest.mark.parametrize("where", [(2, 1), (2, 3), (0, 2)])
def test_a_killed_workers_trial_is_tried_again(new, where):
    def die(number, epoch):
        if (number, epoch) == where:
            raise Killed

    one = new(trials=6)
    with pytest.raises(Killed):
        one.work(with_each(die))
    assert [t.state for t in one.study.trials()].count(RUNNING) == 1
    one = new(trials=6)
    one.work(train)
    assert one.study.trials()[where[0]].notes["deaths"] == 1
    other = new(trials=6, name="other")
    other.work(train)
    assert table(one) == table(other)


@pytest.mark.parametrize("method", ["report", "finish"])
def test_a_worker_killed_between_two_records_loses_none(new, method, monkeypatch):
    one = new(trials=5)
    record = getattr(one.study, method)
    calls = []

    def die(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise Killed
        return record(*arguments)

    monkeypatch.setattr(one.study, method, die)
    with pytest.raises(Killed):
        one.work(train)
    one = new(trials=5)
    one.work(train)
    other = new(trials=5, name="other")
    other.work(train)
    assert table(one) == table(other)


def test_a_stopped_trial_is_resumed_and_is_no_death(new):
    def stop(number, epoch):
        if (number, epoch) == (1, 2):
            raise Stopped("stopped at step 7", 2)

    one = new()
    with pytest.raises(Stopped):
        one.work(with_each(stop))
    seen = []
    one = new()
    one.work(with_each(lambda *where: seen.append(where)))
    assert seen[:2] == [(1, 2), (1, 3)]
    assert "deaths" not in one.study.trials()[1].notes
    assert len(one.study.trials()) == 4


def test_a_trial_that_kills_its_workers_is_recorded_as_failed(new):
    def die(number, epoch):
        if number == 1:
            raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            new().work(with_each(die))
    one = new()
    one.work(with_each(die))
    trial = one.study.trials()[1]
    assert trial.state == FAILED
    assert trial.notes["error"].startswith("3 workers were killed while they ran it")


def test_a_trial_of_a_worker_that_lives_is_left_alone(new):
    seen = []

    def second(number, epoch):
        if (number, epoch) == (1, 1):  # another worker joins, and does all the rest
            new().work(with_each(lambda *where: seen.append(where)))

    one = new()
    one.work(with_each(second))
    assert {number for number, _ in seen} == {2, 3}
    assert [t.state for t in one.study.trials()].count(RUNNING) == 0


def test_a_pruned_trial_loses_its_checkpoints_and_keeps_its_curves(new):
    one = new(trials=16)
    one.work(train)
    pruned = [t for t in one.study.trials() if t.state == PRUNED]
    assert pruned
    for trial in pruned:
        assert max(trial.epochs) < EPOCHS
        assert not (one.folder(trial.number) / "checkpoints").exists()
        assert (one.folder(trial.number) / "metrics.jsonl").exists()


def test_only_the_first_trial_and_the_best_keep_checkpoints(new):
    one = new(trials=12, keep=2, pruner="none")
    one.work(train)
    trials = sorted(one.study.trials(), key=lambda trial: trial.value)
    kept = {t.number for t in trials if (one.folder(t.number) / "checkpoints").exists()}
    assert kept == {0, trials[0].number, trials[1].number}


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("the loss is not finite at step 3"), "the loss is not finite at step 3"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile"), "out of memory: RESOURCE_EX"),
        (MemoryError("cannot allocate"), "out of memory: cannot allocate"),
    ],
)
def test_a_failed_trial_is_recorded_and_not_fatal(new, error, line):
    def fail(number, epoch):
        if (number, epoch) == (1, 2):
            raise error

    one = new()
    one.work(with_each(fail))
    trial = one.study.trials()[1]
    assert trial.state == FAILED
    assert trial.notes["error"].startswith(line)
    assert not (one.folder(1) / "checkpoints").exists()
    assert len(one.study.trials()) == 4


def test_values_that_do_not_fit_together_fail_alone(new):
    space = {"batch_size": choice(15, 16), "augment": choice("d4", "d4|mixup(0.2)")}
    one = new(trials=12, space=space, pruner="none")
    one.work(train)
    for trial in one.study.trials():
        fails = trial.values == {"batch_size": 15, "augment": "d4|mixup(0.2)"}
        assert (trial.state == FAILED) == fails
        assert ("expected an even number" in trial.notes.get("error", "")) == fails
    assert FAILED in [trial.state for trial in one.study.trials()]


def test_a_trial_without_a_finite_value_fails(new, monkeypatch):
    monkeypatch.setitem(globals(), "loss", lambda config, epoch: math.nan)
    one = new(trials=1)
    one.work(train)
    (trial,) = one.study.trials()
    assert (trial.state, trial.notes["error"]) == (
        FAILED,
        "no epoch has a finite validation loss",
    )


def test_a_bug_is_recorded_and_raised(new):
    def fail(number, epoch):
        raise TypeError("a bug")

    one = new()
    with pytest.raises(TypeError, match="a bug"):
        one.work(with_each(fail))
    assert one.study.trials()[0].notes["error"] == "TypeError: a bug"


def _of_a_checkpoint():
    raise UserError("could not be written") from OSError(errno.ENOSPC, "full")


def _of_a_log():
    raise OSError(errno.ENOSPC, "could not be written")


@pytest.mark.parametrize("fail", [_of_a_checkpoint, _of_a_log])
def test_a_full_disk_ends_the_sweep_and_keeps_the_trial(new, fail):
    def fill(number, epoch):
        if number == 1:
            fail()

    one = new()
    with pytest.raises((UserError, OSError), match="could not be written"):
        one.work(with_each(fill))
    assert one.study.trials()[1].state == RUNNING
    new().work(train)
    assert [t.state for t in one.study.trials()].count(RUNNING) == 0


def test_a_sweep_whose_first_trials_all_fail_gives_up(new):
    def fail(number, epoch):
        raise UserError("no weights")

    one = new(trials=10)
    with pytest.raises(UserError, match="3 trials failed one after another; the last one: no wei"):
        one.work(with_each(fail))
    assert len(one.study.trials()) == 3
    with pytest.raises(UserError, match="no trial is complete; the first error: no weights"):
        one.finish()


def test_a_sweep_whose_weights_are_away_gives_up_and_goes_on_later(new):
    away = True

    def fit(config, workdir, splits, ends_after):
        if away and int(workdir.name) > 0:
            raise UserError("weights.safetensors: no such file")
        train(config, workdir, splits, ends_after)

    one = new(trials=14)
    with pytest.raises(UserError, match="10 trials failed one after another; the last one: weight"):
        one.work(fit)
    assert len(one.study.trials()) == 11
    away = False
    new(trials=14).work(fit)
    states = [trial.state for trial in one.study.trials()]
    assert (len(states), states.count(FAILED)) == (14, 10)


def test_images_are_read_again_only_for_another_size(new, splits):
    space = {"data.image_size": choice(32, 48)}
    one = new(trials=8, space=space, pruner="none")
    one.work(train)
    sizes = [trial.values["data.image_size"] for trial in one.study.trials()]
    changes = [size for i, size in enumerate(sizes) if i and size != sizes[i - 1]]
    assert splits == [(32, False), *((size, True) for size in changes)]
    assert 48 in sizes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 3}, "config.folds is 3, expected 0"),
        ({"data.validation": "0"}, "config.data.validation is 0, expected images to compare"),
    ],
)
def test_a_config_without_one_validation_split_is_refused(new, changes, message):
    with pytest.raises(UserError, match=message):
        new(changes=changes)


def test_a_damaged_sweep_is_one_line(new, tmp_path):
    new()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match=r"sweep\.json: is damaged \(KeyError: 'study'\)"):
        new()


def test_another_config_or_space_is_refused(new, tmp_path):
    new()
    with pytest.raises(UserError, match=r"another config or space \(batch_size: 16 -> 8\)"):
        new(changes={"batch_size": 8})
    with pytest.raises(UserError, match=r"label_smoothing: choice\(0.0, 0.1\) -> not swept"):
        new(space={RATE: SPACE[RATE]})
    (tmp_path / "sweep.log").unlink()
    with pytest.raises(UserError, match="has no study sweep-1"):
        new()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    with pytest.raises(UserError, match="contains a run, expected another --workdir"):
        new(name="run")
