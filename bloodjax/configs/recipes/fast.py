"""For a first classifier in a quarter of an hour on two CPU cores.

Works with any network: `--config.model.name=mobilenetv1_100`. Most training images get two random
effects of a microscope, a camera, a stain or a file format, and some a random filter, besides
flips and quarter turns. The weights are averaged over about the last five hundred steps (EMA).
"""

from bloodjax.configs import common


def get_config():
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`."""
    config = common.from_scratch()
    config.model.name = "efficientnet_lite0"
    config.model.weights = "imagenet"
    config.augment = "d4|random_conv(0.7, p=0.3)|choice('microscope', 0.8, 2)"
    config.loss.class_weights = "none"
    config.loss.label_smoothing = 0.05
    config.phases.finetune.epochs = 8
    config.phases.finetune.learning_rate = 1e-3
    config.ema = 0.998
    config.early_stopping.metric = "refinement"
    config.evaluation.tta = "d4"
    return config
