"""For images like those of the training set: the same microscope, stain and camera.

Works with any network: `--config.model.name=convnext_tiny`. Flips, rotations by any angle, a little
variation of stain and brightness; light label smoothing; EMA weights; d4 test-time augmentation. It
does not train on blur, noise or compression: see `robust.py`.
"""

from bloodjax.configs import common


def get_config():
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`."""
    config = common.from_scratch()
    config.model.name = "efficientnet_lite0"
    config.model.weights = "imagenet"
    config.augment = "d4|turn(1.0, p=0.5)|zoom(0.3)|stain(0.3)|brightness(0.1)|cutmix(1.0, p=0.25)"
    config.loss.class_weights = "none"
    config.loss.label_smoothing = 0.05
    config.phases.finetune.epochs = 12
    config.phases.finetune.learning_rate = 1e-3
    config.ema = 0.999
    config.evaluation.tta = "d4"
    return config
