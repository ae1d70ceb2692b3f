"""MobileNet (Howard et al., 2017) in the founding report's setting."""

from bloodjax.configs import common


def get_config():
    """Give `config.data.train`."""
    config = common.report()
    config.model.name = "mobilenetv1_100"
    config.model.weights = "imagenet"
    return config
