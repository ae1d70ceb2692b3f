"""A first run on rendered cells: about half a minute on two CPU cores, and nothing to download."""

from bloodjax.configs import common


def get_config():
    """A small convolutional network on 64x64 images, trained from scratch."""
    config = common.from_scratch()
    config.data.train = "synthetic:2400"
    config.data.image_size = 64
    config.batch_size = 32
    config.model.name = "simple_cnn_050"
    config.phases.finetune.epochs = 8
    # Label smoothing lowers the confidence, which the calibration would only have to undo.
    config.loss.label_smoothing = 0.0
    return config
