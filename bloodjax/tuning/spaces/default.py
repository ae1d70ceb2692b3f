"""Rates and regularisation of the phase `finetune`, for any network and any data."""

from bloodjax.tuning import choice, log_uniform


def get_space():
    """The learning rate, and what most often matters beside it."""
    return {
        "phases.finetune.learning_rate": log_uniform(1e-4, 1e-2),
        "phases.finetune.weight_decay": log_uniform(1e-3, 0.3),
        "phases.finetune.layer_decay": choice(0.8, 0.9, 1.0),
        "loss.label_smoothing": choice(0.0, 0.05, 0.1),
        "batch_size": choice(32, 64, 128),
    }
