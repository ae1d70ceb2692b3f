"""A first run on rendered cells: minutes on a laptop, and nothing to download."""

from bloodjax.configs import common


def get_config():
    """A small plain network, trained from scratch."""
    config = common.from_scratch()
    config.data.train = "synthetic:2400"
    config.model.name = "simple_cnn"
    config.phases.finetune.epochs = 12
    return config
