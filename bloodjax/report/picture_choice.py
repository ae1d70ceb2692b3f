"""Which images of a split a report shows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

MISTAKES = 24
# Images of a cell of the confusion matrix, beside and on the diagonal, and of all cells.
OF_CONFUSION, OF_CORRECT, OF_ALL_CELLS = 8, 4, 400
# Images of a class of each kind, and of all classes.
OF_CLASS, OF_ALL_CLASSES = 3, 150

Probabilities = Float[np.ndarray, "n classes"]
Labels = Int[np.ndarray, " n"]
Indices = Int[np.ndarray, "_"]


def confident_mistakes(probabilities: Probabilities, labels: Labels, k: int = MISTAKES) -> Indices:
    """Indices of up to `k` misclassified images, by descending confidence."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order[:k]]


def cells(probabilities: Probabilities, labels: Labels) -> dict[tuple[int, int], Indices]:
    """Images of each cell of the confusion matrix, until there are 400.

    Returns:
      (label, predicted) -> indices. The confusions come first, the most frequent one before the
      others, each with its most confident images; then the diagonal with its least confident ones.
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    num_classes = probabilities.shape[1]
    cell_of = labels.astype(np.int64) * num_classes + predicted
    numbers, counts = np.unique(cell_of, return_counts=True)
    label, other = np.divmod(numbers, num_classes)
    chosen, left = {}, OF_ALL_CELLS
    for i in np.lexsort((numbers, -counts, label == other)):
        if not left:
            break
        on_diagonal = label[i] == other[i]
        members = np.flatnonzero(cell_of == numbers[i])
        order = np.argsort(confidence[members] * (1 if on_diagonal else -1), kind="stable")
        found = members[order[: min(left, OF_CORRECT if on_diagonal else OF_CONFUSION)]]
        chosen[int(label[i]), int(other[i])] = found
        left -= len(found)
    return chosen


def of_labels(
    probabilities: Probabilities, labels: Int[np.ndarray, "n classes"]
) -> dict[int, tuple[Indices, Indices, Indices]]:
    """Images of each label, of images with any number of them, until there are 150.

    Returns:
      Label -> indices of the images that have it, by descending and by ascending probability of it,
      and of images that do not have it, by descending probability.
    """
    chosen, left = {}, OF_ALL_CLASSES
    for label, (scores, true) in enumerate(zip(probabilities.T, labels.T, strict=True)):
        order = np.argsort(-scores, kind="stable")
        with_it, without = order[true[order] == 1], order[true[order] == 0][:OF_CLASS]
        found = with_it[:OF_CLASS]
        missed = with_it[::-1][:OF_CLASS]
        missed = missed[~np.isin(missed, found)]
        left -= len(found) + len(missed) + len(without)
        if left < 0:
            break
        chosen[label] = found, missed, without
    return chosen


def examples(probabilities: Probabilities, labels: Labels) -> dict[int, tuple[Indices, Indices]]:
    """Typical and doubtful images of each class, until there are 150.

    Returns:
      Label -> indices of the images whose label is the most probable class, by descending
      probability, and of other images of the label, by ascending probability of it.
    """
    chosen, left = {}, OF_ALL_CLASSES
    for label in np.unique(labels).tolist():
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(-probabilities[members, label], kind="stable")]
        right = members[probabilities[members].argmax(axis=1) == label]
        typical = right[:OF_CLASS]
        doubtful = members[::-1][:OF_CLASS]
        doubtful = doubtful[~np.isin(doubtful, typical)]
        left -= len(typical) + len(doubtful)
        if left < 0:
            break
        chosen[label] = typical, doubtful
    return chosen
