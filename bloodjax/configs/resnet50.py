"""ResNet-50 (He et al., 2015) in the founding report's setting."""

from bloodjax.configs import common


def get_config():
    """Give `config.data.train`."""
    config = common.report()
    config.model.name = "resnet50"
    config.model.weights = "imagenet"
    return config
