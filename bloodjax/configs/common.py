"""Settings that several recipes share; each recipe changes only its own."""

from bloodjax import config as config_lib


def report():
    """The setting in which the project's founding report compared its networks.

    96x96 images, batches of 64, class weights, a head of dense layers trained first on the frozen
    backbone, then everything but BatchNorm fine-tuned with AdamW and warm restarts. At most 100
    epochs; early stopping after 10 epochs without a better validation loss.
    """
    config = config_lib.defaults()
    config.batch_size = 64
    config.data.image_size = 96
    config.phases.head.epochs = 10
    config.phases.finetune.epochs = 90
    for phase in (config.phases.head, config.phases.finetune):
        phase.schedule.first_cycle = 10.0
        phase.schedule.t_mul = 2.0
        phase.schedule.m_mul = 0.9
    config.early_stopping.patience = 10
    return config


def from_scratch():
    """One phase in which everything trains, under a linear head, with one cycle of cosine decay."""
    config = config_lib.defaults()
    config.model.weights = ""
    config.model.head.hidden = ()
    config.model.head.batch_norm = False
    config.model.head.dropout = (0.0, 0.2)
    config.phases.head.epochs = 0
    config.phases.finetune.freeze = "none"
    config.phases.finetune.learning_rate = 2e-3
    config.phases.finetune.schedule.warmup = 1.0
    config.loss.label_smoothing = 0.1
    config.early_stopping.metric = "accuracy"
    return config
