"""EfficientNet-B0 (Tan and Le, 2019) at 96 pixels: the head first, then all but BatchNorm."""

from bloodjax.configs import common


def get_config():
    """Give `config.data.train`."""
    config = common.report()
    config.model.name = "efficientnet_b0"
    config.model.weights = "imagenet"
    return config
