"""For a first answer in minutes: flips and quarter turns, four epochs, no test-time augmentation.

Works with any network: `--config.model.name=mobilenetv1_100`.
"""

from bloodjax.configs import common


def get_config():
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`."""
    config = common.from_scratch()
    config.model.name = "efficientnet_lite0"
    config.model.weights = "imagenet"
    config.loss.class_weights = "none"
    config.loss.label_smoothing = 0.0
    config.phases.finetune.epochs = 4
    config.phases.finetune.learning_rate = 1e-3
    return config
