"""Inception-v3 (Szegedy et al., 2015) at 96 pixels: the head first, then all but BatchNorm."""

from bloodjax.configs import common


def get_config():
    """Give `config.data.train`."""
    config = common.report()
    config.model.name = "inception_v3"
    config.model.weights = "imagenet"
    return config
