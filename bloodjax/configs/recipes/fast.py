"""For a first classifier in about 20 minutes on two CPU cores.

Works with any network: `--config.model.name=mobilenetv1_100`. Most training images get two random
effects of a microscope, a camera, a stain or a file format, besides flips and quarter turns; some
get the stains of another smear, cells of another size, the colours of another image, spots,
defective pixels, strong compression or low resolution. The weights are averaged over about the last
five hundred steps (EMA).
"""

from bloodjax.configs import common


def get_config():
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`."""
    config = common.from_scratch()
    config.model.name = "efficientnet_lite0"
    config.model.weights = "imagenet"
    config.augment = (
        "d4|smear(0.8, p=0.3)|scale(0.6, p=0.3)|fourier(1.0, 0.05, p=0.5)"
        "|choice('microscope', 0.8, 2)|deposits(1.0, p=0.15)|impulse_noise(1.0, p=0.05)"
        "|jpeg(1.0, p=0.1)|pixelate(1.0, p=0.1)"
    )
    config.loss.class_weights = "none"
    config.loss.label_smoothing = 0.05
    config.phases.finetune.epochs = 8
    config.phases.finetune.learning_rate = 1e-3
    config.ema = 0.998
    config.early_stopping.metric = "refinement"
    config.evaluation.tta = "d4"
    return config
