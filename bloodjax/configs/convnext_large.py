"""ConvNeXt-Large (Liu et al., 2022) in the founding report's setting."""

from bloodjax.configs import common


def get_config():
    """Give `config.data.train`."""
    config = common.report()
    config.model.name = "convnext_large"
    config.model.weights = "imagenet"
    config.model.drop_path = 0.1
    return config
