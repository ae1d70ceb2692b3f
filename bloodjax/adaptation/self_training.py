"""Training on a site's images with the classes that the run itself predicts there.

Pseudo-labels (Lee 2013) of the surer half of each predicted class, among the classes that can occur
at the site, are learned by all layers for a short time, with training cells rehearsed
(`fine_tuning`). The new weights are averaged with the run's own (Wortsman et al. 2022,
https://arxiv.org/abs/2109.01903), which keeps most of what was learned at home.

Only the list of classes that can occur corrects pseudo-labels, so it is tried only where the list
leaves a class out.
"""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree, UInt8

from bloodjax.adaptation.fine_tuning import FineTuning, LabelledImages
from bloodjax.adaptation.remedies import Remedy
from bloodjax.augment.tta import TTAConfig
from bloodjax.evaluation.classifier import Classifier

_SURER = 0.5  # share of the images of each predicted class
_FEWEST = 20  # images with pseudo-labels
_SHARE_OF_NEW = 0.5  # in the average of the weights
# Most accuracy at home that it may cost.
_MOST_LOST = 0.01


def fit(
    model: Classifier,
    images: UInt8[np.ndarray, "n size size 3"],
    rehearsal: LabelledImages,
    validation: LabelledImages,
    seed: int,
) -> tuple[PyTree | None, Remedy]:
    """Trains on pseudo-labels, and checks the result.

    Args:
      model: The classifier of the run, with its site.
      images: Images of the site in the network's size, before the site's appearance.
      rehearsal: Training cells.
      validation: Validation cells, for the accuracy at home.
      seed: Random seed.

    Returns:
      The new variables, or None if the check fails; and the remedy.
    """
    absent = [name not in model.possible_classes for name in model.classes]
    if not any(absent):
        why = "Without a list that leaves classes out, nothing corrects wrong pseudo-labels."
        return None, Remedy("self_training", False, {}, why, tried=False)
    probabilities = model.predict(images)
    chosen = surer(probabilities)
    check = {"images": float(len(chosen))}
    if len(chosen) < _FEWEST:
        why = f"Only {len(chosen)} images would get pseudo-labels, expected {_FEWEST}."
        return None, Remedy("self_training", False, check, why, tried=False)
    prepared = model.site.prepare(images) if model.site else images
    labels = probabilities.argmax(axis=1).astype(np.int32)
    training = FineTuning(model, LabelledImages(prepared[chosen], labels[chosen]), rehearsal, seed)
    learned = training.train(np.ones(len(chosen), bool), "self-training")
    own = jax.device_get(model.predictor.variables)
    averaged = jax.tree.map(
        lambda old, new: (1 - _SHARE_OF_NEW) * old + _SHARE_OF_NEW * new, own, learned
    )
    at_home, outside = [], []
    for variables in (own, averaged):
        answers = training.predict(variables, validation.images, TTAConfig())
        at_home.append(float(np.mean(answers.argmax(axis=1) == validation.labels)))
        there = training.predict(variables, prepared, TTAConfig())
        outside.append(float(there[:, absent].sum(axis=1).mean()))
    for when, accuracy, mass in zip(("before", "after"), at_home, outside, strict=True):
        check |= {f"home_accuracy_{when}": accuracy, f"outside_classes_{when}": mass}
    if at_home[1] < at_home[0] - _MOST_LOST:
        why = f"It costs {100 * (at_home[0] - at_home[1]):.1f} points of accuracy at home."
        return None, Remedy("self_training", False, check, why)
    if outside[1] >= outside[0]:
        why = "Classes that cannot occur at the site do not become less probable."
        return None, Remedy("self_training", False, check, why)
    why = (
        f"Classes that cannot occur at the site get {100 * outside[1]:.0f} % of the probability "
        f"instead of {100 * outside[0]:.0f} %, and accuracy at home is {at_home[1]:.3f} instead "
        f"of {at_home[0]:.3f}."
    )
    return averaged, Remedy("self_training", True, check, why)


def surer(probabilities: Float[np.ndarray, "n classes"]) -> Int[np.ndarray, " _"]:
    """Indices of the surer half of the images of each predicted class, at least one; ascending.

    Args:
      probabilities: Class probabilities of the images.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    found = []
    for label in np.unique(predicted):
        rows = np.flatnonzero(predicted == label)
        order = rows[np.argsort(-confidence[rows], kind="stable")]
        found.append(order[: max(1, round(_SURER * len(rows)))])
    return np.sort(np.concatenate(found)) if found else np.zeros(0, int)
