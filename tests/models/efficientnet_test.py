import jax
import jax.numpy as jnp
import pytest

from bloodjax import models
from bloodjax.models.efficientnet import NETWORKS
from bloodjax.pretrained import rules

# Millions of parameters with 1000 classes, as the papers and timm publish them.
MILLIONS = {"b0": 5.29, "b1": 7.79, "b2": 9.11, "b3": 12.23, "b4": 19.34, "b5": 30.39}
MILLIONS |= {"b6": 43.04, "b7": 66.35}
MILLIONS |= {"lite0": 4.65, "lite1": 5.42, "lite2": 6.09, "lite3": 8.20, "lite4": 13.01}
V2_MILLIONS = {"s": 21.46, "m": 54.14, "l": 118.52}

_STAGES = [f"blocks.{i}" for i in range(7)]


def _table(name, source):
    return rules.table("efficientnet", source, name)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_parameters_as_published(name):
    model = models.build(name, 1000, hidden=(), batch_norm=False)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    )
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) / 1e6
    size = name.rpartition("_")[2]
    assert millions == pytest.approx((V2_MILLIONS if "v2" in name else MILLIONS)[size], abs=0.01)


def _timm_reference(timm, name, flavour):
    prefix = "tf_" if flavour == "tf" else ""
    return timm.create_model(f"{prefix}{name}", num_classes=10)


@pytest.mark.parametrize("flavour", ["tf", "timm"])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_b0"])
def test_equals_timm(timm, parity, name, flavour):
    reference = _timm_reference(timm, name, flavour)
    parity.check(reference, name, _table(name, "timm"), _STAGES, flavour=flavour, sizes=(96, 101))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_network_equals_timm(timm, parity, name):
    reference = _timm_reference(timm, name, "tf")
    stages = [f"blocks.{i}" for i in range(len(NETWORKS[name]["stages"]))]
    parity.check(reference, name, _table(name, "timm"), stages, flavour="tf")
