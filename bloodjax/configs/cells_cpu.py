"""The best that trains from scratch on real cells in 40 minutes on two CPU cores."""

from bloodjax.configs import common


def get_config():
    """A plain network on 96x96 images; give `config.data.train`."""
    config = common.from_scratch()
    config.model.name = "simple_cnn"
    config.phases.finetune.epochs = 24
    config.phases.finetune.schedule.warmup = 2.0
    config.evaluation.tta = "d4"
    return config
