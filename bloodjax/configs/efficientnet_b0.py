"""EfficientNet-B0 (Tan and Le, 2019) in the founding report's setting."""

from bloodjax.configs import common


def get_config():
    """Give `config.data.train`."""
    config = common.report()
    config.model.name = "efficientnet_b0"
    config.model.weights = "imagenet"
    return config
