import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import attribution, run
from bloodjax import config as config_lib
from bloodjax.attribution import curves
from bloodjax.configs import quickstart
from bloodjax.data.synthetic.cells import render_with_masks
from bloodjax.evaluation import classifier
from bloodjax.models.backbone import Backbone
from bloodjax.models.head import Head, Network


class _Pair(Backbone):
    """Two stages: the image, and sums of two of its pixels."""

    @nn.compact
    def __call__(self, x, train=False, update_stats=False):
        x = self.end_stage(0, jnp.tanh(x.astype(self.dtype)))
        x = self.end_stage(1, x[:, ::2, ::2] + x[:, 1::2, 1::2])
        return x.mean(axis=(1, 2))


@pytest.fixture(scope="module")
def explain():
    model = Network(_Pair(dtype=jnp.bfloat16), Head(4, hidden=(), batch_norm=False))
    kernel = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    logits = {"kernel": kernel, "bias": np.zeros(4, np.float32)}
    variables = {"params": {"head": {"logits": logits}}}

    def explain(images, classes, **options):
        mean, std = (0.5, 0.4, 0.3), (0.2, 0.2, 0.3)
        return attribution.explain(model, variables, mean, std, images, classes, **options)

    return explain


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (18, 8, 8, 3)).astype(np.uint8)


def test_maps_do_not_depend_on_the_batch(explain, images):
    classes = np.arange(18) % 4
    found = explain(images, classes)
    assert found.dtype == np.float32
    assert found.min() >= 0
    largest = found.max((1, 2))
    assert (largest > 0).sum() > 12
    np.testing.assert_allclose(largest[largest > 0], 1, rtol=1e-6)
    np.testing.assert_allclose(explain(images[16:17], classes[16:17]), found[16:17], atol=1e-5)
    np.testing.assert_allclose(explain(images[15:], classes[15:]), found[15:], atol=1e-5)
    assert not np.allclose(explain(images[:2], classes[:2] + 1), found[:2])


def test_no_images(explain, images):
    assert explain(images[:0], np.zeros(0, int)).shape == (0, 8, 8)


def test_an_unknown_method(explain, images):
    with pytest.raises(ValueError, match="method is 'magic', expected one of integrated_cam, "):
        explain(images, np.zeros(18, int), method="magic")


@pytest.fixture(scope="module")
def on_cells(tmp_path_factory):
    """A small network that was trained on rendered cells, other cells, and where they are."""
    config = quickstart.get_config()
    config.evaluation.bootstrap = 20
    workdir = tmp_path_factory.mktemp("truth") / "run"
    run.train(config_lib.validate(config), workdir)
    cells, masks = render_with_masks(np.arange(48, dtype=np.int32) % 8, 64, seed=99)
    return classifier.load(workdir), cells, masks


@pytest.mark.full
@pytest.mark.slow
def test_the_network_looks_at_the_cell(on_cells):
    model, cells, masks = on_cells
    maps = np.stack(model.explain(cells)[0])
    inside = (maps * masks).sum((1, 2)) / maps.sum((1, 2))
    assert masks.mean() < 0.35
    assert inside.mean() >= 0.8
    assert np.median(inside) >= 0.9


@pytest.mark.full
@pytest.mark.slow
def test_curves_beat_those_of_random_maps(on_cells):
    model, cells, _ = on_cells
    maps, predicted = model.explain(cells)
    others = np.random.default_rng(0).random((len(cells), 64, 64))

    def areas(curve, attributions):
        steps = [curve(cell, one, 9) for cell, one in zip(cells, attributions, strict=True)]
        probabilities = model.predict(np.concatenate(steps)).reshape(len(cells), 9, -1)
        return curves.area(probabilities[np.arange(len(cells)), :, predicted])

    deletion = areas(curves.deletion, others) - areas(curves.deletion, maps)
    insertion = areas(curves.insertion, maps) - areas(curves.insertion, others)
    for gain in (deletion, insertion):
        assert gain.mean() > 0.1
        assert (gain > 0).mean() > 0.7
