"""XLA's convolutions, which the tests compare ours with, and how near kernels must be."""

import numpy as np
from jax import lax


def dense_conv(x, kernel, stride, padding, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",  # a GPU's default is less precise than the tests' tolerances
    )


def grouped_conv(x, kernel, stride, padding):
    return dense_conv(x, kernel[:, :, None], stride, padding, groups=x.shape[-1])


def assert_near(found, wanted, mean=0.003):
    """Within bfloat16's accuracy of the largest value, and much nearer on average."""
    assert found.shape == wanted.shape
    difference = np.abs(np.asarray(found, np.float32) - np.asarray(wanted))
    scale = np.abs(np.asarray(wanted)).max()
    assert difference.max() <= 0.02 * scale
    assert difference.mean() <= mean * scale
