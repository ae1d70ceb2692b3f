"""Every key of a config, with its default; what each value may be stands in `validation`."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_collections

from bloodjax.distributed.preemption import GRACE_SECONDS
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg


def defaults() -> ml_collections.ConfigDict:
    """Every key there is, with the value that it has where a config file leaves it alone."""
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "batch_size": 64,
            # Micro-batches that a step works its batch through in; BatchNorm sees one at a time.
            "accumulate_steps": 1,
            # "jit" over a mesh of all devices, or "pmap"; the numbers are the same.
            "parallel": "jit",
            # Parameters, moments and averages: "data", whole on each device, or "fsdp", split over
            # all of them, for networks that outgrow one; the numbers are the same.
            "sharding": "data",
            # Training steps that one dispatch to the device runs.
            "steps_per_call": 1,
            # Of the computation: "auto" is float32 on CPU and bfloat16 elsewhere.
            "dtype": "auto",
            "data": {
                # A SPEC: FILE.npz, a folder or .zip of <class>/<image>, or synthetic[:N].
                "train": "",
                # A SPEC, a fraction of train, or "auto": the source's own split, else a fraction.
                "validation": "auto",
                "test": "auto",
                # A second validation and test part, each image distorted once: empty for none, or
                # which distortions to draw from, such as all, extra:1-3 or jpeg_compression,dust.
                "validation_distortion": "",
                "image_size": 96,
                # Whether the training images stay on the device: always | never (they stream from
                # the host) | auto (up to a quarter of its memory). The numbers are the same.
                "on_device": "auto",
                # What the audit's findings lead to: drop | report | fail.
                "clean": "drop",
                # Each epoch draws every class equally often, its number of steps unchanged, and
                # class weights are 1.
                "oversample": False,
                # An unreadable image in a folder: fail | skip.
                "bad_images": "fail",
                # Class names in label order, for a file that does not name its own.
                "classes": (),
            },
            "model": {
                "name": "convnext_base",
                # "imagenet" (the network's default source), a file, hf:OWNER/NAME[@REVISION][:FILE]
                # or package:NAME; empty for training from scratch.
                "weights": "imagenet",
                # Whose padding and epsilons; that of the weights where it is empty.
                "flavour": "",
                "drop_path": 0.0,
                # Compute each block's maps anew in the backward pass; on CPU that saves no memory.
                "remat": False,
                # In 0..1, of red, green and blue; what the weights expect where these are empty.
                "mean": (),
                "std": (),
                # What the weights say of themselves. A run fills it in as it starts.
                "source": dataclasses.asdict(PretrainedCfg("", "", "")),
                "head": {
                    "hidden": (512, 256, 128, 64),
                    "batch_norm": True,
                    "dropout": (0.3, 0.3),
                    "activation": "relu",
                },
            },
            # What training sees of the images: none | flip | d4 (the eight flips and quarter
            # turns), and more; see `augment.policy`.
            "augment": "d4",
            "loss": {
                "name": "cross_entropy",  # or "focal", with
                "gamma": 2.0,
                # none | balanced (by 1 / count) | effective (number of samples, by its beta).
                "class_weights": "balanced",
                "effective_beta": 0.999,
                # Times log(frequency of the class), added to the logits in training in place of
                # class weights: 0 is off, 1 aims at balanced accuracy.
                "logit_adjustment": 0.0,
                "label_smoothing": 0.0,
            },
            "phases": {
                "head": _phase(epochs=10, freeze="backbone", learning_rate=1e-3),
                "finetune": _phase(epochs=90, freeze="batchnorm", learning_rate=1e-4),
            },
            # What a step keeps of the exponential moving average of all weights, 0.999 say; at 0
            # there is none. Early stopping goes by the average, and the run gives it.
            "ema": 0.0,
            # At the end, the weights of this many best epochs are averaged, one after another as
            # long as validation gets no worse; 0 is off. Each one's checkpoint is kept.
            "soup": 0,
            # Training stops, in each phase, after `patience` epochs without a better `metric`.
            # It and the choice of the best checkpoint look at `set`: validation, or where
            # data.validation_distortion is given validation_distorted, or both, by their mean.
            "early_stopping": {"metric": "loss", "patience": 10, "set": "validation"},
            # What is done about a loss or gradient that is not finite: up to `skip` steps in a row
            # are left out; after more, the run goes back to the last good checkpoint and goes on
            # with `factor` times the learning rate; after so many `rollbacks`, it ends instead.
            "divergence": {"skip": 5, "rollbacks": 2, "factor": 0.5},
            # Number of runs that each have another part of train for validation, in WORKDIR/fold0
            # and so on; what is evaluated is their ensemble. 0 is a single run.
            "folds": 0,
            "evaluation": {
                # Views to average over: none | flip | d4 | crops | colour | robust, or several
                # joined by "+" (d4+crops); see `augment.views`.
                "tta": "none",
                # Of what the mean is taken: probabilities | logits.
                "tta_average": "probabilities",
                # Weights of the views, chosen on the validation part: none (equal) | greedy |
                # weights; see `tta_selection`.
                "tta_select": "none",
                "bootstrap": 1000,
            },
            # A checkpoint is written after every epoch, and within one after this many minutes.
            "checkpoint_minutes": 10.0,
            # After SIGINT or SIGTERM, time for a last checkpoint; then the process ends anyhow.
            "grace_seconds": GRACE_SECONDS,
            # Of a run of several processes: seconds without a sign from one, or that one waits for
            # its next images, after which all end, to be started again.
            "peer_timeout": 30.0,
            # Once in each phase, where a step's time goes: a trace and a table in WORKDIR/profile.
            "profile": False,
        }
    )


def _phase(epochs: int, freeze: str, learning_rate: float) -> dict[str, Any]:
    return {
        "epochs": epochs,
        # What is not trained: none | batchnorm | backbone.
        "freeze": freeze,
        # With a frozen backbone, compute its features of each image and view once, and train the
        # head on them: auto (where there are more epochs than views, and memory) | always | never.
        "cache_features": "auto",
        "optimizer": "adamw",  # adamw | lion (a third of AdamW's rate or less) | sgd
        "learning_rate": learning_rate,
        # Each block's rate is this much of the next one's, the head's the whole; 1 is off.
        "layer_decay": 1.0,
        "weight_decay": 0.05,
        "clip_norm": 1.0,
        # Of the first moment, one value a trained parameter: float32 | bfloat16.
        "mu_dtype": "float32",
        # After a warm-up, lengths in epochs: sgdr, cosine decay with warm restarts, in which a
        # `first_cycle` of 0 is one cycle as long as the phase | cosine, once | wsd, which is stable
        # and falls linearly over the last `decay` of the phase | constant. `alpha` is the lowest
        # rate, as a part of the highest.
        "schedule": {
            "name": "sgdr",
            "warmup": 1.0,
            "first_cycle": 0.0,
            "t_mul": 2.0,
            "m_mul": 1.0,
            "decay": 0.2,
            "alpha": 0.0,
        },
    }
