"""VGG16 (Simonyan and Zisserman, 2014) at 96 pixels: the head first, then all but BatchNorm."""

from bloodjax.configs import common


def get_config():
    """Give `config.data.train`."""
    config = common.report()
    config.model.name = "vgg16"
    config.model.weights = "imagenet"
    return config
