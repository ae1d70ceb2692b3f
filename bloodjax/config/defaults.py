"""Every config key with its default value; `validation` lists the allowed values.

The configuration reference is generated from the comments in this file: a key's comment is the
lines directly above it, or the end of its own line.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections
from ml_collections import config_dict

from bloodjax.distributed.preemption import GRACE_SECONDS
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg

Config = ml_collections.ConfigDict | ml_collections.FrozenConfigDict

PHASES = ("head", "finetune")

# Keys whose value is a SPEC, or the fraction of the training images to split off.
SPLIT_SOURCES = ("data.validation", "data.test")
# Beginnings of the keys that a run fills in and the user cannot set.
FILLED_IN = ("model.source.", "data.scale", "data.first_label")

# Old name of a config key -> its present name. Config files, overrides and the config.json of a
# workdir may still use the old name.
RENAMED: dict[str, str] = {
    "data.oversample": "data.sampling",
    "model.flavour": "model.variant",
    "model.source.flavour": "model.source.variant",
    "model.source.rules": "model.source.naming",
}
# Old name of a key whose values have changed as well -> old value -> present value.
OLD_VALUES: dict[str, dict[bool, str]] = {
    "data.oversample": {False: "natural", True: "balanced"},
}


def defaults() -> ml_collections.ConfigDict:
    """A new config in which every key has its default value."""
    return ml_collections.ConfigDict(
        {
            # Random seed of the splits, the initial weights, the order of images and augmentation.
            "seed": 0,
            # Images per training step, over all devices.
            "batch_size": 64,
            # Micro-batches that each batch is split into, to save memory. Gradients are averaged
            # over them; BatchNorm uses the statistics of one micro-batch at a time.
            "accumulate_steps": 1,
            # How steps run on several devices: "jit" over a mesh of all devices, or "pmap". Both
            # give the same numbers, up to rounding.
            "parallel": "jit",
            # Where parameters, optimizer moments and averages are stored: "data" keeps a full copy
            # on each device; "fsdp" splits them over all devices, for networks that do not fit on
            # one. Both give the same numbers, up to rounding.
            "sharding": "data",
            # Training steps that one dispatch to the device runs. More steps cost more memory and
            # save host time.
            "steps_per_call": 1,
            # Dtype of the computation; parameters are always float32. "auto" is float32 on CPU and
            # bfloat16 elsewhere.
            "dtype": "auto",
            "data": {
                # Training images, as a SPEC: FILE.npz, a folder or .zip of <class>/<image>, a table
                # (.csv, .tsv, .parquet, .xlsx), a folder of packed shards, tfds:NAME[:VERSION],
                # hf-dataset:OWNER/NAME[@REVISION][:CONFIG], or synthetic[:N]. Files and folders may
                # be in a bucket: gs://BUCKET/NAME or s3://BUCKET/NAME. Required.
                "train": "",
                # Validation images: a SPEC, a fraction of train, or "auto", which takes the
                # source's own validation split or, if it has none, 15 % of train. 0 is none. Write
                # a path that looks like a number with its folder, as in ./1.10.
                "validation": "auto",
                # Test images; values as for `validation`.
                "test": "auto",
                # Distortions for an additional copy of the validation and test splits, in which
                # each image is distorted once: all, or names or groups with optional severities,
                # such as extra:1-3 or jpeg_compression,dust. Empty for none.
                "validation_distortion": "",
                # Height and width in pixels that images are resized to.
                "image_size": 96,
                # Whether the training images are kept on the device: always, never (they are
                # streamed from the host), or auto (if they take at most a quarter of the device's
                # memory). The numbers are the same.
                "on_device": "auto",
                # What to do with the audit's findings: drop leaves out junk, and images and groups
                # that leak between splits, and ends the run if that costs a class more than a
                # tenth; report only lists the findings; fail ends the run.
                "clean": "drop",
                # How often an epoch shows the images of each class. natural shows every image
                # once but those, others in each epoch, that would not fill a last batch; with
                # balanced all classes are equally frequent; with sqrt their shares are
                # proportional to the square root of their sizes. A number q from 0 to 1 makes
                # them proportional to size**q: 1 is natural, 0 balanced, 0.5 sqrt (Kang et al.
                # 2020). The number of steps per epoch stays the same, each repeat of an image is
                # augmented anew, and class weights are 1 unless sampling is natural.
                "sampling": "natural",
                # What to do about an unreadable image in a folder or zip: fail ends the run, skip
                # leaves the image out with a warning.
                "bad_images": "fail",
                # Scale of image values of more than 8 bits: the number of bits whose largest value
                # becomes 255 (8, 10, 12, 14 or 16), or auto, which takes it from the largest value
                # in the run's sources.
                "bits": "auto",
                # How an image becomes a square: crop (its central square), pad (bars of its
                # border's colour), squash (other proportions), or such as 240px (its central
                # square of 240 pixels, filled with its border's colour where it is smaller).
                "fit": "crop",
                # Scale that the training images were read with, if they have more than 8 bits;
                # filled in by the run and not to be set.
                "scale": "",
                # Number of the first class, 0 or 1, if the training labels are numbers; names if
                # the class names state the numbers. Filled in by the run and not to be set.
                "first_label": "",
                # What the folders of a source mean, from the outermost on: class, split/class,
                # class/group, group/class and so on, where a group is a patient, a slide or a fold
                # and other is a level without meaning; auto finds it from their names.
                "layout": "auto",
                # Columns of a table (.csv, .tsv, .parquet, .xlsx), as KIND=NAME joined by commas,
                # such as path=image_id,label=dx; kinds are path, label, split, group and weight.
                # Those that it does not name are found by their names. One-hot columns are joined
                # by +, as in label=MEL+NV+BCC; split= uses none.
                "columns": "",
                # Folder or .zip that the paths of images in a table are relative to; empty for the
                # table's own folder.
                "images": "",
                # Whether an image has one class or any number of labels: multi-class, multi-label
                # (an npz with 0 or 1 for each label), or auto, which is multi-class but for
                # MedMNIST's chestmnist.npz. A run with several labels fills it in.
                "task": "auto",
                # Class names in label order, for a file that does not name its own classes.
                "classes": (),
            },
            "model": {
                # Network; `python -m bloodjax.list_models` lists all names.
                "name": "convnext_base",
                # Pretrained weights: "imagenet" (the network's default source), a file,
                # hf:OWNER/NAME[@REVISION][:FILE] or package:NAME. Empty trains from scratch.
                "weights": "imagenet",
                # Library whose padding and normalisation epsilons the network uses; empty for the
                # one that the weights were trained with.
                "variant": "",
                # Stochastic depth: probability of dropping the last residual block; earlier blocks
                # are dropped less often, in proportion to their depth.
                "drop_path": 0.0,
                # Whether the backward pass recomputes each block's activations, which saves device
                # memory and costs time. It saves no memory on CPU.
                "remat": False,
                # Red, green and blue mean that images are normalised with, in 0..1; empty for the
                # values that the weights expect.
                "mean": (),
                # Red, green and blue standard deviation that images are normalised with, in 0..1;
                # empty for the values that the weights expect.
                "std": (),
                # Preprocessing and licence metadata of the pretrained weights; filled in by the
                # run and not to be set.
                "source": dataclasses.asdict(PretrainedCfg("", "", "")),
                "head": {
                    # Widths of the dense layers between backbone and logits; empty for a linear
                    # head.
                    "hidden": (512, 256, 128, 64),
                    # Whether the backbone's features go through BatchNorm before the dense layers.
                    "batch_norm": True,
                    # Dropout rates before the first dense layer and before the logits.
                    "dropout": (0.3, 0.3),
                    # Activation of the dense layers.
                    "activation": "relu",
                },
            },
            # Augmentation of the training images: none, flip, d4 (the eight combinations of flips
            # and quarter turns), or a policy of several stages such as
            # d4|randaugment(2, 0.4)|mixup(0.2); `bloodjax.augment.policy` describes the grammar.
            "augment": "d4",
            "loss": {
                # cross_entropy, or focal, which uses `gamma`.
                "name": "cross_entropy",
                # Focusing exponent of the focal loss; 0 is the cross-entropy.
                "gamma": 2.0,
                # Weights of the classes in the loss: none, balanced (proportional to 1 / count), or
                # effective (by the effective number of samples, which uses `effective_beta`).
                "class_weights": "balanced",
                # Beta of the effective number of samples, (1 - beta^count) / (1 - beta).
                "effective_beta": 0.999,
                # Factor of log(class frequency), which is added to the logits during training in
                # place of class weights. 0 disables it; 1 optimises balanced accuracy.
                "logit_adjustment": 0.0,
                # Probability mass of each target that is spread evenly over all classes.
                "label_smoothing": 0.0,
                # Weight of the Jensen-Shannon divergence between the predictions for an image
                # without the random operations of `augment` and for two versions with them, as
                # AugMix uses; 12 in its paper. A step then costs three times as much. 0 disables
                # it.
                "consistency": 0.0,
            },
            # Distillation: training towards the probabilities of a trained run (docs/training.md).
            "distill": {
                # Workdir of the teacher: a run, several runs joined by commas, or a run with
                # folds. Of several networks the mean probabilities are used. Empty for none.
                "workdir": "",
                # Share of the teacher in the loss; the labels have the rest.
                "weight": 0.7,
                # Temperature that softens the teacher's and the student's probabilities.
                "temperature": 2.0,
                # Test-time views that the teacher predicts with, as for evaluation.tta.
                "tta": "none",
                # Whether the teacher sees the augmented images of each step, which costs its
                # forward pass in each step. By default it sees every image once, unmodified.
                "online": False,
            },
            # Highest learning rate of both phases: a number, or auto, which finds one for each
            # phase in a range test (docs/learning-rate.md). Empty for phases.NAME.learning_rate.
            "learning_rate": config_dict.FieldReference("", field_type=object),
            # Training runs in two phases, one after the other: `head`, then `finetune`.
            "phases": {
                "head": _phase(epochs=10, freeze="backbone", learning_rate=1e-3),
                "finetune": _phase(epochs=90, freeze="batchnorm", learning_rate=1e-4),
            },
            # Decay per step of the exponential moving average of all weights, such as 0.999. 0
            # disables it. Early stopping monitors the EMA weights, and they are what the run
            # returns.
            "ema": 0.0,
            # Number of best epochs whose checkpoints are kept for a greedy soup. When training
            # ends, their weights are averaged one after another, as long as validation gets no
            # worse. 0 disables it.
            "soup": 0,
            "early_stopping": {
                # Validation metric that selects the best checkpoint and stops training: loss,
                # accuracy, balanced_accuracy, f1_macro, auc, ece, or refinement, which is the loss
                # after the best temperature.
                "metric": "loss",
                # Epochs without a better metric after which a phase stops.
                "patience": 10,
                # Split that the metric is computed on: validation, validation_distorted (needs
                # data.validation_distortion), or both, whose mean is used.
                "set": "validation",
            },
            # What happens when the loss or a gradient is not finite.
            "divergence": {
                # Consecutive steps that may be skipped. After more, the run rolls back to its last
                # good checkpoint.
                "skip": 5,
                # Rollbacks that a run may make. After more, it ends with an error.
                "rollbacks": 2,
                # Factor that each rollback multiplies the learning rate with.
                "factor": 0.5,
            },
            # Number of cross-validation runs. Each uses another part of train for validation and
            # is stored in WORKDIR/fold0, WORKDIR/fold1, ...; their ensemble is evaluated. 0 is a
            # single run. leave-one-group-out is a run for each group, such as a patient, which
            # validates on this group.
            "folds": config_dict.FieldReference(0, field_type=object),
            "evaluation": {
                # Views for test-time augmentation: none, flip, d4, crops, colour, robust, zoom or
                # d4_zoom, or several joined by "+", as in d4+crops.
                "tta": "none",
                # What is averaged over the views: probabilities or logits.
                "tta_average": "probabilities",
                # How the weights of the views are fitted on the validation split: none (all are
                # equal), greedy (greedy selection) or weights (minimises the log loss).
                "tta_select": "none",
                # Bootstrap resamples for the 95 % confidence intervals of the metrics.
                "bootstrap": 1000,
                # Whether to list labels that are likely wrong, in label_review.csv and the report.
                "label_review": True,
                # Calibration of the probabilities, fitted on the validation split after training:
                # none, temperature, vector (a scale and a bias for each class), or auto
                # (temperature, unless vector is better on held-out folds of validation).
                "calibration": "auto",
                # Share of wrong answers among those that are not referred to a person. The
                # threshold of confidence is chosen for it on the validation split.
                "target_error": 0.005,
                # Conformal sets: the share of images whose set of classes may lack the true one,
                # such as 0.05. 0 writes no sets.
                "conformal": 0.0,
                # How images unlike the training images are detected: none, combined, mahalanobis,
                # relative_mahalanobis, knn or energy (docs/rejection.md), or auto: combined, unless
                # another clearly better tells validation images from held-out kinds of images.
                "rejection": "auto",
                # Share of the validation images that the detector's threshold rejects.
                "rejection_rate": 0.01,
            },
            # Minutes between checkpoints within an epoch; 0 writes none. A checkpoint is also
            # written after every epoch.
            "checkpoint_minutes": 10.0,
            # Seconds that a run may take to save a checkpoint after SIGINT or SIGTERM. The process
            # ends then, whether the checkpoint was saved or not.
            "grace_seconds": GRACE_SECONDS,
            # Seconds without a heartbeat from one of several processes, or without progress in one
            # of them, after which all end, so that a launcher can start them again.
            "peer_timeout": 30.0,
            # Where the run is recorded: tensorboard (files in the workdir), wandb and mlflow, as in
            # tensorboard,mlflow. wandb (Weights & Biases) and mlflow need the extra of the same
            # name, and take server and credentials from their own environment variables.
            "trackers": ("tensorboard",),
            # What W&B and MLflow are told of the run (docs/trackers.md).
            "tracking": {
                # Project in W&B and experiment in MLflow. Empty for WANDB_PROJECT or
                # MLFLOW_EXPERIMENT_NAME, or else bloodjax.
                "project": "",
                # Name of the run in both; empty for the name of the workdir.
                "run_name": "",
                # Tags in both, each a word or key=value.
                "tags": (),
                # Whether the best weights are stored there too, as a folder for bloodjax.load.
                "model": True,
                # Seconds that a finished run waits at most until both have everything.
                "finish_seconds": 60.0,
            },
            # Whether to record where a step's time goes, once per phase: a trace and a table in
            # WORKDIR/profile.
            "profile": False,
        }
    )


def _phase(epochs: int, freeze: str, learning_rate: float) -> dict[str, Any]:
    return {
        # Epochs of the phase; early stopping may end it before. 0 skips the phase.
        "epochs": epochs,
        # What is not trained: none, batchnorm (scale and statistics of every BatchNorm layer),
        # backbone, stages:N (the stem and the backbone's first N stages) or stages:N+batchnorm.
        "freeze": freeze,
        # Progressive image size, as sides in pixels with the fraction of the phase's epochs at
        # which each one ends: 64:0.4,80:0.7,96 trains at 64 px for the first 40 %, at 80 px up to
        # 70 %, and then at 96 px. Validation always has data.image_size. Empty for one size.
        "sizes": "",
        # Whether the features of a frozen backbone are computed once for each image and view, and
        # the head is trained on them: always, never, or auto (if the phase has more epochs than
        # views, and the features fit in memory).
        "cache_features": "auto",
        # Optimizer. For lion use at most a third of the learning rate for adamw.
        "optimizer": "adamw",
        # Highest learning rate of the schedule: a number, or auto, which finds it in a range test
        # at the start of the phase. `learning_rate` sets that of both phases.
        "learning_rate": config_dict.FieldReference(learning_rate, field_type=object),
        # Layer-wise learning-rate decay: each block's rate is this factor times the next block's,
        # and the head has the full rate. 1 disables it.
        "layer_decay": 1.0,
        # Decoupled weight decay; it applies to kernels only.
        "weight_decay": 0.05,
        # Global gradient norm above which gradients are scaled down. 0 disables clipping.
        "clip_norm": 1.0,
        # Dtype of the optimizer's first moment, one value per trained parameter.
        "mu_dtype": "float32",
        "schedule": {
            # Learning rate after the warm-up: sgdr (cosine decay with warm restarts), cosine (one
            # cosine decay), wsd (constant, then a linear decay), step (constant, lower after each
            # of the milestones) or constant.
            "name": "sgdr",
            # Length of the linear warm-up in epochs.
            "warmup": 1.0,
            # sgdr: length of the first cycle in epochs. 0 is one cycle as long as the phase.
            "first_cycle": 0.0,
            # sgdr: factor between the lengths of successive cycles, 1 or at least 1.01.
            "t_mul": 2.0,
            # sgdr: factor between the highest learning rates of successive cycles.
            "m_mul": 1.0,
            # wsd: fraction of the phase over which the rate decays at its end.
            "decay": 0.2,
            # step: fractions of the phase after which the rate is multiplied by `factor`.
            "milestones": (0.5, 0.75),
            # step: the factor of each milestone.
            "factor": 0.1,
            # Lowest learning rate, as a fraction of the highest.
            "alpha": 0.0,
        },
    }
