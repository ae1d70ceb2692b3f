"""What is drawn at random for a comparison: kernels and images."""

import re

import numpy as np

# Squeeze-and-excitation's layers, as timm, torchvision and Keras call them.
_EXCITATION = re.compile(r"\.se\.|\.block\.\d+\.fc\d|se_reduce|se_expand")


def kernel_std(name, fan_in):
    """A kernel's standard deviation.

    What signals are multiplied by stays near 1/2: products of products would enlarge rounding.
    """
    return (2.0 / fan_in) ** 0.5 * (0.1 if _EXCITATION.search(name) else 1.0)


def images(size, batch=2):
    """Normalised random NHWC images, each with a tint of its own, the same at every size.

    Noise alone is the same in every image once it is averaged, as features are.
    """

    def image(i):
        rng = np.random.default_rng(i)
        return rng.normal(size=3) + rng.normal(size=(size, size, 3))

    return np.stack([image(i) for i in range(batch)]).astype(np.float32)
