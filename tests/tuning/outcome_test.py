"""Tests of bloodjax/tuning/outcome.py."""

import json

import pytest

from bloodjax import config as config_lib
from bloodjax.tuning import choice, log_uniform

pytest.importorskip("optuna", reason="needs the extra [sweep]")

from bloodjax.tuning import outcome
from bloodjax.tuning.study import COMPLETE, FAILED, Study, Trial

SPACE = {
    "phases.finetune.learning_rate": log_uniform(1e-4, 1e-2),
    "model.head.hidden": choice((), (32, 16)),
}
VALUES = {"phases.finetune.learning_rate": 0.00123456789012345, "model.head.hidden": (32, 16)}


def test_the_best_config_is_a_file_that_loads_as_it_was(make_config, tmp_path):
    config = config_lib.with_values(make_config(augment="d4|mixup(0.2)"), VALUES)
    best = Trial(7, COMPLETE, 0.125, VALUES, {}, {}, None)
    path = tmp_path / "best.py"
    path.write_text(outcome.best_config_file(config, best, 20, config))
    assert path.read_text().startswith(
        '"""Best of 20 trials: trial 7, validation loss 0.1250."""\n'
    )
    assert config_lib.load(str(path)) == config
    assert config_lib.load(str(path), ["batch_size=8"]).batch_size == 8


def test_the_page_and_the_config_of_a_study(make_config, tmp_path):
    changes = {"early_stopping.set": "both", "early_stopping.metric": "f1_macro"}
    config = make_config(**changes, **{"data.validation_distortion": "all"})
    study = Study(f"journal:///{tmp_path / 'sweep.log'}", None, SPACE, larger_is_better=True)
    for number, value in enumerate((0.5, 0.75, None)):
        study.ask()
        study.choose(number, VALUES)
        study.report(number, {1: value or 0.0})
        if value is None:
            study.note(number, error="out of memory")
        study.finish(number, FAILED if value is None else COMPLETE, value)
    rolled_back = outcome.trial_folder(tmp_path, 1)
    rolled_back.mkdir(parents=True)
    (rolled_back / "rollbacks.json").write_text(json.dumps([]))
    content = outcome.content(tmp_path, config, SPACE, study)
    assert (content.best, content.own, content.has_test) == (1, None, True)
    assert content.measure == "validation f1 macro (also distorted)"
    assert [row["remark"] for row in content.trials] == [
        "",
        "diverged, and went on with a lower learning rate",
        "out of memory",
    ]
    assert content.trials[0]["values"]["model.head.hidden"] == "(32, 16)"
    outcome.write(tmp_path, config, SPACE, study)
    assert "trial 1" in (tmp_path / "report" / "index.html").read_text()
    assert config_lib.load(str(tmp_path / "best.py")) == config_lib.with_values(config, VALUES)


def test_the_first_trial_is_the_own_one_if_it_has_the_values_and_is_complete(make_config, tmp_path):
    config, space = make_config(), {"batch_size": choice(8, 16)}
    study = Study(f"journal:///{tmp_path / 'sweep.log'}", None, space, larger_is_better=True)
    assert outcome.own_trial(config, space, study) is None
    for number, value in enumerate((16, 8)):
        study.ask()
        study.choose(number, {"batch_size": value})
    study.finish(1, COMPLETE, 0.75)
    assert outcome.own_trial(config, space, study) is None
    study.finish(0, COMPLETE, 0.5)
    assert outcome.own_trial(config, space, study).number == 0
    assert outcome.own_trial(make_config(batch_size=4), space, study) is None


def test_evaluations_are_kept(tmp_path):
    assert outcome.read_tests(tmp_path) == []
    outcome.write_tests(tmp_path, [{"date": "2026-01-02"}])
    assert outcome.read_tests(tmp_path) == [{"date": "2026-01-02"}]
