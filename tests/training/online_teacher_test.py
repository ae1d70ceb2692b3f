import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.errors import UserError
from bloodjax.metrics.calibration import Calibration
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.training import online_teacher
from bloodjax.training.distillation import soften
from bloodjax.training.online_teacher import TeacherNetwork
from bloodjax.training.step_input import normalise, resize

MODEL = Network(SimpleCNN(depths=(1,), widths=(4,)), Head(3, hidden=(), dropout=(0.0, 0.0)))
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CALIBRATION = Calibration("vector", 1.5, (0.1, 0.2, -0.3), (1.0, 2.0, 1.0))


@pytest.fixture(scope="module")
def variables():
    init = jax.jit(MODEL.init)
    drawn = [init(jax.random.key(i), jnp.zeros((1, 16, 16, 3))) for i in range(2)]
    # Random weights hardly tell classes apart.
    return tuple(jax.tree.map(lambda leaf: 3 * leaf, one) for one in drawn)


def test_the_mean_of_calibrated_networks_is_softened(variables):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    order = (2, 0, 1)
    networks = (
        TeacherNetwork(MODEL, MEAN, STD, 16, CALIBRATION, order),
        TeacherNetwork(MODEL, MEAN, STD, 12, Calibration(), order),
    )
    found = online_teacher.probabilities(networks, variables, jnp.asarray(images), 2.0)
    each = []
    for network, weights in zip(networks, variables, strict=True):
        seen = jnp.asarray(images) if network.size == 16 else resize(jnp.asarray(images), 12)
        logits = MODEL.apply(weights, normalise(seen, MEAN, STD))
        each.append(network.calibration.apply(np.asarray(jax.nn.softmax(logits)))[:, list(order)])
    # Images of steps are not rounded to integers where they are resized.
    np.testing.assert_allclose(found, soften(np.mean(each, axis=0), 2.0), atol=0.01)
    assert np.ptp(np.asarray(found), axis=0).max() > 0.05


def test_a_resumed_run_has_the_same_teacher(variables, tmp_path):
    online_teacher.check_same(tmp_path, variables, "teacher", fresh=True)
    online_teacher.check_same(tmp_path, variables, "teacher", fresh=False)
    with pytest.raises(UserError, match="teacher: has other weights than when the run in"):
        online_teacher.check_same(tmp_path, variables[::-1], "teacher", fresh=False)
    (tmp_path / online_teacher.FILE).unlink()
    with pytest.raises(UserError, match=r"teacher\.json: No such file"):
        online_teacher.check_same(tmp_path, variables, "teacher", fresh=False)
