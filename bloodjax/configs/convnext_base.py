"""ConvNeXt-Base (Liu et al., 2022) at 96 pixels: the head first, then all but BatchNorm."""

from bloodjax.configs import common


def get_config():
    """Give `config.data.train`."""
    config = common.report()
    config.model.name = "convnext_base"
    config.model.weights = "imagenet"
    config.model.drop_path = 0.1
    return config
