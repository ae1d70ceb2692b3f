"""The reference implementations, and how a network is held against one of them."""

import functools
import os

import pytest

from .parity import Parity

os.environ.setdefault("KERAS_BACKEND", "jax")


@functools.cache
def _torchvision():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    pytest.importorskip("importlib.util").find_spec("torchvision") or pytest.skip(
        "needs the extra [parity]"
    )
    # PyTorch's CPU build lacks torchvision's compiled operators. The networks need none of them;
    # the import needs their names.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        if not torch._C._dispatch_has_kernel(f"torchvision::{name}"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    return torchvision, library  # the library's definitions live as long as it does


@pytest.fixture(scope="session")
def torchvision():
    return _torchvision()[0]


@pytest.fixture(scope="session")
def timm():
    _torchvision()
    return pytest.importorskip("timm", reason="needs the extra [parity]")


@pytest.fixture
def keras():
    """Keras, whose automatic names of layers start anew."""
    keras = pytest.importorskip("keras", reason="needs the extra [parity]")
    keras.utils.clear_session()
    return keras


@pytest.fixture
def parity(record_property):
    return Parity(record_property)
