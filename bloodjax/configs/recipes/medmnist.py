"""The protocol of MedMNIST's benchmark: ResNet-18 from random weights on a MedMNIST file at 28 px.

As in "MedMNIST v2" (Yang et al., 2023): Adam at 1e-3, multiplied by 0.1 after 50 and 75 of 100
epochs, batches of 128, no augmentation, and the epoch with the best mean AUC on validation. The
splits are the file's own, of which no image is left out. MedMNIST's guide has the networks for
224 px, and what differs from the benchmark's own program.
"""

from bloodjax import config as config_lib


def get_config():
    """Give `config.data.train`, such as pathmnist.npz."""
    config = config_lib.defaults()
    config.data.image_size = 28
    config.data.clean = "report"
    config.batch_size = 128
    config.augment = "none"
    config.model.name = "resnet18"
    config.model.variant = "small"
    config.model.weights = ""
    config.model.mean = (0.5, 0.5, 0.5)
    config.model.std = (0.5, 0.5, 0.5)
    config.model.head.hidden = ()
    config.model.head.batch_norm = False
    config.model.head.dropout = (0.0, 0.0)
    config.loss.class_weights = "none"
    config.phases.head.epochs = 0
    phase = config.phases.finetune
    phase.epochs = 100
    phase.freeze = "none"
    phase.optimizer = "adamw"  # Adam, as the weight decay is 0.
    phase.weight_decay = 0.0
    phase.clip_norm = 0.0
    phase.learning_rate = 1e-3
    phase.schedule.name = "step"
    phase.schedule.warmup = 0.0
    phase.schedule.milestones = (0.5, 0.75)
    phase.schedule.factor = 0.1
    config.early_stopping.metric = "auc"
    config.early_stopping.patience = 100
    return config
