"""For data in which a class has only a dozen to a few dozen training images.

Works with any network: `--config.model.name=convnext_tiny`. Every epoch shows all classes equally
often, so the images of a rare class are repeated, each time augmented anew. The guide to rare
classes has what was measured, and when not to take this recipe.
"""

from bloodjax.configs import common


def get_config():
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`."""
    config = common.from_scratch()
    config.model.name = "efficientnet_lite0"
    config.model.weights = "imagenet"
    config.data.sampling = "balanced"
    config.loss.class_weights = "none"
    config.loss.label_smoothing = 0.0
    config.phases.finetune.epochs = 8
    config.phases.finetune.learning_rate = 1e-3
    config.early_stopping.metric = "balanced_accuracy"
    config.evaluation.tta = "d4"
    # Vector scaling would fit a bias of each class to the shares of the validation split, in which
    # the class is rare again.
    config.evaluation.calibration = "temperature"
    return config
