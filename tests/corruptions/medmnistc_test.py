"""The eleven corruptions compared with the package medmnistc, if it can be imported.

It cannot be part of the extra [parity]: it pins other versions of scikit-image and medmnist. Beside
an environment with [parity], `pip install --no-deps medmnistc medmnist wand opencv-python-headless`
and ImageMagick's library (Debian: libmagickwand-dev) make it import.
"""

import random
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from bloodjax.corruptions import deposits, registry
from bloodjax.data.synthetic import render

# Tolerance for rounding: the largest difference of a value, and the share of values that differ.
EXACT = (0, 0.0)
TOLERANCE = {
    "pixelate": EXACT,
    "jpeg_compression": EXACT,
    "defocus_blur": EXACT,
    "motion_blur": (1, 0.001),
    "brightness_up": EXACT,
    "brightness_down": EXACT,
    "contrast_up": EXACT,
    "contrast_down": EXACT,
    "saturate": (1, 0.01),
    "stain_deposit": EXACT,
    "bubble": EXACT,
}


@pytest.fixture(scope="module")
def reference(torchvision):
    reason = "needs medmnistc, Wand with ImageMagick, and OpenCV; see above"
    for name in ("cv2", "wand.image"):
        pytest.importorskip(name, reason=reason, exc_type=ImportError)
    module = pytest.importorskip("medmnistc.corruptions.registry", reason=reason)
    return module.CORRUPTIONS_DS["bloodmnist"]


def images(size):
    rng = np.random.default_rng(0)
    cells = render.render_dataset(8, size, seed=3).images[:2]
    return [*cells, rng.integers(0, 256, (size, size, 3), np.uint8)]


def theirs(corruption, image, severity, rng):
    """The package's result, with all its random numbers taken from `rng`."""

    def integer(low, high):
        return int(rng.integers(low, high + 1))

    with (
        mock.patch.object(random, "randint", integer),
        mock.patch.object(np.random, "uniform", rng.uniform),
        # NumPy has removed a function that the package calls; this is its successor.
        mock.patch.object(np, "fromstring", np.frombuffer),
    ):
        return corruption.apply(Image.fromarray(image), severity - 1)


@pytest.mark.parametrize("size", [224, 96])
@pytest.mark.parametrize("name", registry.BLOODMNIST_C)
def test_images_are_the_package_s(name, size, reference, monkeypatch):
    corruption = reference[name]
    # The package's spots are images. With our spots, the result must be the same.
    spots = {str(k): deposits.inks(n).astype(np.uint64) for k, n in ((3, 24), (4, 32))}
    monkeypatch.setattr(corruption, "_inks", spots)
    largest, share = TOLERANCE[name]
    for image in images(size):
        for severity in range(1, 6):
            expected = theirs(corruption, image, severity, np.random.default_rng(severity))
            found = registry.BLOODMNIST_C[name](image, severity, np.random.default_rng(severity))
            error = np.abs(found.astype(int) - expected)
            assert error.max() <= largest, severity
            assert np.mean(error > 0) <= share, severity


@pytest.mark.parametrize("size", [24, 32])
def test_spots_are_as_large_as_the_package_s(size, reference):
    theirs = reference["stain_deposit"].inks[{24: "3", 32: "4"}[size]].astype(bool)
    ours = deposits.inks(size)
    assert ours.shape == theirs.shape
    assert abs(ours.mean() - theirs.mean()) < 0.1
    # From edge to edge, or nearly.
    for spots in (ours, theirs):
        across = spots.any(axis=1).sum(axis=1) / size
        assert across.min() > 0.7


def test_the_names_are_the_package_s(reference):
    assert tuple(reference) == registry.GROUPS["all"]
