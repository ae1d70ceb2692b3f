import jax
import jax.numpy as jnp
import pytest

from bloodjax import models
from bloodjax.models.efficientnet import NETWORKS
from bloodjax.pretrained import name_maps
from bloodjax.pretrained.pretrained_cfg import DEFAULTS

from .parity import DOUBLE, MODES, RUNNING

# Millions of parameters with 1000 classes, as the papers and timm publish them.
MILLIONS = {"b0": 5.29, "b1": 7.79, "b2": 9.11, "b3": 12.23, "b4": 19.34, "b5": 30.39}
MILLIONS |= {"b6": 43.04, "b7": 66.35}
MILLIONS |= {"lite0": 4.65, "lite1": 5.42, "lite2": 6.09, "lite3": 8.20, "lite4": 13.01}
V2_MILLIONS = {"s": 21.46, "m": 54.14, "l": 118.52}

# In its last stage PyTorch's float32 differs from its float64 by 1.2e-4.
DEEPEST = ("efficientnetv2_l",)

_STAGES = [f"blocks.{i}" for i in range(7)]


def _table(name, source):
    return name_maps.name_map(models.architecture(name), source)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_parameters_as_published(name):
    model = models.build(name, 1000, hidden=(), batch_norm=False)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    )
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6
    size = name.rpartition("_")[2]
    assert millions == pytest.approx((V2_MILLIONS if "v2" in name else MILLIONS)[size], abs=0.01)


def _timm_reference(timm, name, variant):
    prefix = "tf_" if variant == "tf" else ""
    return timm.create_model(f"{prefix}{name}", num_classes=10)


@pytest.mark.full
@pytest.mark.parametrize("variant", [pytest.param("tf", marks=pytest.mark.slow), "timm"])
@pytest.mark.parametrize(("name", "size"), [("efficientnet_lite0", 101), ("efficientnet_b0", 96)])
def test_equals_timm(timm, parity, name, size, variant):
    reference = _timm_reference(timm, name, variant)
    parity.check(reference, name, _table(name, "timm"), _STAGES, variant=variant, sizes=(size,))


@pytest.mark.full
def test_gradients_equal_timm(timm, parity):
    name = "efficientnet_b0"
    reference = _timm_reference(timm, name, "tf")
    parity.check_gradients(reference, name, _table(name, "timm"), variant="tf")


@pytest.mark.slow
def test_the_lite_gradients_equal_timm(timm, parity):
    name = "efficientnet_lite0"
    reference = _timm_reference(timm, name, "tf")
    parity.check_gradients(reference, name, _table(name, "timm"), variant="tf", modes=DOUBLE)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_equals_timm(timm, parity, name):
    variant = DEFAULTS[name].variant
    reference = _timm_reference(timm, name, variant)
    stages = [f"blocks.{i}" for i in range(len(NETWORKS[name]["stages"]))]
    modes = DOUBLE if name in DEEPEST else MODES
    parity.check(reference, name, _table(name, "timm"), stages, variant=variant, modes=modes)


def _torchvision_variant(name):
    """torchvision's B0 to B4 have PyTorch's default epsilon, as timm's networks have."""
    return "timm" if name in [f"efficientnet_b{i}" for i in range(5)] else "torchvision"


def _check_torchvision(torchvision, parity, name, sizes):
    reference = torchvision.models.get_model(name.replace("tv2", "t_v2"), num_classes=10)
    stages = [f"features.{i + 1}" for i in range(len(NETWORKS[name]["stages"]))]
    variant = _torchvision_variant(name)
    modes = DOUBLE[:1] if name in DEEPEST else RUNNING
    settings = {"variant": variant, "sizes": sizes, "modes": modes}
    parity.check(reference, name, _table(name, "torchvision"), stages, **settings)


@pytest.mark.full
def test_equals_torchvision(torchvision, parity):
    _check_torchvision(torchvision, parity, "efficientnet_b0", (65,))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(n for n in NETWORKS if "lite" not in n))
def test_every_network_equals_torchvision(torchvision, parity, name):
    _check_torchvision(torchvision, parity, name, (224, 96, 101))


def _check_keras(keras, parity, name, size):
    reference = getattr(keras.applications, f"EfficientNet{name[-2:].upper()}")(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    # A stage of one block does not end in an addition.
    blocks = [stage.blocks for stage in NETWORKS[name]["stages"]]
    ends = [
        f"block{i}{chr(ord('a') + n - 1)}_{'add' if n > 1 else 'project_bn'}"
        for i, n in enumerate(blocks, 1)
    ]
    parity.check_keras(reference, name, ends, parity.images(size), variant="tf", scale=255)


@pytest.mark.slow  # Keras takes long to build the network
@pytest.mark.parametrize("size", [224, 96, 101])
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b4"])
def test_every_network_equals_keras(keras, parity, name, size):
    _check_keras(keras, parity, name, size)
