"""VGG16 (Simonyan and Zisserman, 2014) in the founding report's setting."""

from bloodjax.configs import common


def get_config():
    """Give `config.data.train`."""
    config = common.report()
    config.model.name = "vgg16"
    config.model.weights = "imagenet"
    return config
