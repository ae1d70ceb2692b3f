"""Tests of bloodjax/training/trainer.py: runs that start from a file of weights."""

import jax
import pytest

import bloodjax
from bloodjax import config as config_lib
from bloodjax import run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.errors import UserError
from bloodjax.evaluation import evaluator
from bloodjax.pretrained import bloodjax_file
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg
from bloodjax.training import factory

from ..trees import assert_trees_equal


@pytest.fixture
def weights(tmp_path):
    """A file of ours with weights for the tiny runs' network, and the weights."""
    _, variables = bloodjax.create_model("simple_cnn", num_classes=3)
    path = tmp_path / "weights.safetensors"
    source = PretrainedCfg("hf:a/b@c", "timm", "", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), licence="mit")
    bloodjax_file.write(path, "simple_cnn", 3, source, variables)
    return path, jax.device_get(variables)


@pytest.mark.full
def test_a_run_starts_from_weights_and_keeps_their_terms(
    make_config, tmp_path, monkeypatch, weights
):
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})
    path, variables = weights
    changes = {"phases.finetune.epochs": 0, "model.weights": str(path)}
    config, workdir = make_config(**changes), tmp_path / "run"
    run.train(config, workdir)
    stored = config_lib.load_json(workdir / "config.json")
    assert (stored.model.source.licence, stored.model.weights) == ("mit", str(path))
    assert factory.normalisation(stored) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        progress, step = checkpoints.progress(), checkpoints.latest_step
        drawn = factory.variables(stored, len(progress.classes))
        found = jax.device_get(checkpoints.restore_variables(step, drawn))
    assert progress.source["licence"] == "mit"
    # The head's phase leaves the backbone as it came.
    assert_trees_equal(found["params"]["backbone"], variables["params"]["backbone"])
    # A run that resumes no longer needs the file of its weights.
    path.unlink()
    run.train(config, workdir)


def test_missing_weights_show_before_the_data_are_read(make_config, tmp_path):
    config = make_config(**{"model.weights": "nowhere.safetensors"})
    with pytest.raises(UserError, match=r"'nowhere\.safetensors': no such file"):
        run.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
