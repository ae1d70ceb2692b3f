import jax
import pytest

from bloodjax import models, run
from bloodjax.configs import quickstart
from bloodjax.models import summary

CLASSES = 8


@pytest.fixture(scope="module")
def config():
    return quickstart.get_config()


def _images(config):
    source, _, number = config.data.train.partition(":")
    assert source == "synthetic"
    return int(number)


def test_it_needs_no_file_and_one_phase(config):
    assert not config.model.weights
    assert config.phases.head.epochs == 0
    assert config.phases.finetune.freeze == "none"
    assert config.batch_size % jax.device_count() == 0


def test_its_test_split_is_large_enough_for_mistakes(config):
    assert config.data.test == "auto"  # 15 % of the images
    assert 0.15 * _images(config) >= 300


def test_its_training_costs_less_than_a_teraflop(config):
    # Two cores of a laptop do 50 GFLOP/s at least, which makes 20 seconds.
    size, head = config.data.image_size, config.model.head
    network = models.build(config.model.name, CLASSES, hidden=head.hidden, batch_norm=False)
    images = 0.7 * _images(config) * config.phases.finetune.epochs
    assert summary.training_flops(network, size) * images < 1e12


@pytest.mark.slow
def test_it_learns(config, tmp_path):
    results = run.train(config, tmp_path)
    assert results["test"]["accuracy"] >= 0.95
    assert results["test"]["accuracy"] - results["test"]["baseline"]["accuracy"] > 0.2
    assert (tmp_path / "report" / "index.html").is_file()
