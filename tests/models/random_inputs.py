"""Random kernels and images for comparisons with reference implementations."""

import re

import numpy as np

# Names of squeeze-and-excitation layers in timm, torchvision and Keras.
_EXCITATION = re.compile(r"\.se\.|\.block\.\d+\.fc\d|se_reduce|se_expand")


def kernel_std(name, fan_in):
    """Standard deviation of a random kernel.

    Smaller for squeeze-and-excitation, so that its factors stay near 1/2; larger factors would
    amplify rounding errors from block to block.
    """
    return (2.0 / fan_in) ** 0.5 * (0.1 if _EXCITATION.search(name) else 1.0)


def images(size, batch=2):
    """Normalised random NHWC images, each with its own tint, which does not depend on the size.

    Without a tint all images would have nearly equal features, as features are averages.
    """

    def image(i):
        rng = np.random.default_rng(i)
        return rng.normal(size=3) + rng.normal(size=(size, size, 3))

    return np.stack([image(i) for i in range(batch)]).astype(np.float32)
