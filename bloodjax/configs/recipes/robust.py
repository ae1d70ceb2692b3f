"""For images that will not look like the training set: another microscope, stain, camera, file.

Works with any network: `--config.model.name=convnext_tiny`. What makes it robust, largest gain
first:

- Most training images get two random effects of a microscope, a camera, a stain or a file format,
  besides flips and quarter turns. A quarter of the images lose a box.
- Each on 10 to 20 % of the images: spots that hide parts of the cell, defective pixels, and
  compression and low resolution up to full magnitude, which the pool does not reach.
- MixUp and CutMix, on half of the images, and label smoothing reduce over-confidence.
- The weights are averaged over about the last thousand steps (EMA).
- The best epoch is the one with the lowest refinement loss on the validation split, both
  unmodified and under kinds of distortion that training does not use. The accuracies of two late
  epochs differ by a few images, which is chance; the loss itself grows with the under-confidence
  that mixing and smoothing cause, and once kept epoch 6 of 20.
"""

from bloodjax.configs import common

# Distortions that the "microscope" pool does not contain. Bubbles, deposits and impulse noise are
# like spots and defective pixels, which training draws in other forms.
_HELD_OUT = (
    *("bubble", "stain_deposit", "dust", "scratch"),
    *("impulse_noise", "uneven_illumination", "chromatic_aberration"),
)


def get_config():
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`."""
    config = common.from_scratch()
    config.model.name = "efficientnet_lite0"
    config.model.weights = "imagenet"
    config.augment = (
        "d4|choice('microscope', 0.8, 2)|deposits(1.0, p=0.2)|impulse_noise(1.0, p=0.1)"
        "|jpeg(1.0, p=0.1)|pixelate(1.0, p=0.1)"
        "|erase(0.5, p=0.25)|mixup(0.2, p=0.25)|cutmix(1.0, p=0.25)"
    )
    config.loss.class_weights = "none"
    config.loss.label_smoothing = 0.1
    config.phases.finetune.epochs = 20
    config.phases.finetune.learning_rate = 1e-3
    config.ema = 0.999
    config.data.validation_distortion = ",".join(_HELD_OUT)
    config.early_stopping.set = "both"
    config.early_stopping.metric = "refinement"
    config.evaluation.tta = "d4"
    return config
