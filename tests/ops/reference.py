"""XLA's convolutions, which the tests compare ours with."""

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
