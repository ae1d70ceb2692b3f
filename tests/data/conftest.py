"""An image to encode."""

import numpy as np
import pytest


@pytest.fixture
def image():
    """Smooth colours with some grain, wider than high."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:120, :180]
    smooth = np.stack([x, y, 255 - x], -1)
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
