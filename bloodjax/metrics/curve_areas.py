"""Areas under the ROC and precision-recall curves of resamples, without sorting each resample.

The scores are sorted once. A resample is the number of times that each image, or each group of
images, counts; its curves are sums of these numbers in the order of the scores.

`RocArea` is for the classes of a classifier, of which a good one ranks nearly all positives above
all negatives. `CurveAreas` is for labels that few images have, and has the average precision, too.
"""

from __future__ import annotations

import numpy as np
import scipy
from jaxtyping import Bool, Float, Int

from bloodjax.metrics.ratios import ratio


class RocArea:
    """Area under the ROC curve of one class, from its scores in the order that it depends on.

    A row is a run of positives that outrank the same negatives. In a good classifier nearly all
    positives are in one run, so there are far fewer rows than images.
    """

    def __init__(
        self,
        scores: Float[np.ndarray, " n"],
        positive: Bool[np.ndarray, " n"],
        unit: Int[np.ndarray, " n"],
        units: int,
    ):
        """Sorts the scores.

        Args:
          scores: Score of each image.
          positive: Whether each image is of the class; at least one is.
          unit: Number of the unit of each image, what is resampled: 0 to `units` - 1.
          units: Number of units.
        """
        values, rank = np.unique(scores[positive], return_inverse=True)
        others, row = scores[~positive], np.searchsorted(values, scores[~positive])
        below = row < len(values)
        others, owner, row = others[below], unit[~positive][below], row[below]
        tied = values[row] == others
        # A run begins at a positive with a negative right below it or tied with it, and after one
        # that has a tie.
        begins = np.zeros(len(values) + 1, bool)
        begins[row] = begins[row[tied] + 1] = True
        run = np.cumsum(begins[:-1]) - begins[0]
        rank, row = run[rank], run[row]
        shape = (int(run[-1]) + 1, units)
        self.up = _count_by(rank, unit[positive], shape)
        self.down = _count_by(row, owner, shape)
        self.tied = _count_by(row[tied], owner[tied], shape)
        self.positives = np.bincount(unit[positive], minlength=units).astype(np.float64)
        self.negatives = np.bincount(unit[~positive], minlength=units).astype(np.float64)

    def __len__(self) -> int:
        """Number of rows."""
        return self.up.shape[0]

    def area(self, counts: Float[np.ndarray, "units r"]) -> Float[np.ndarray, " r"]:
        """Area of each resample: P(a positive outranks a negative), where a tie counts half.

        It is NaN in a resample without a positive or without a negative.
        """
        below = self.down @ counts
        np.cumsum(below, axis=0, out=below)
        if self.tied.nnz:
            below -= (self.tied @ counts) / 2
        outranked = np.einsum("ir,ir->r", self.up @ counts, below)
        return ratio(outranked, (self.positives @ counts) * (self.negatives @ counts))


def _count_by(
    row: Int[np.ndarray, " n"], column: Int[np.ndarray, " n"], shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """The matrix of `shape` with the number of times that each row and column occur together."""
    return scipy.sparse.csr_array((np.ones(len(row)), (row, column)), shape=shape)


class CurveAreas:
    """Areas under the ROC and the precision-recall curve of one label, from its sorted scores.

    The curves change at the scores of images that have the label, of which there are few: the
    images between two such scores are summed at once.
    """

    def __init__(self, scores: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]):
        """Sorts the scores, given whether each image has the label."""
        self.order = np.argsort(-scores, kind="stable")
        ordered = scores[self.order]
        starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
        ends = np.append(starts[1:], len(ordered))
        hits = np.flatnonzero(positive[self.order])
        self.hits = self.order[hits]
        # The runs of equal scores that have a positive, and the first positive of each.
        runs, self.first_hits = np.unique(
            np.searchsorted(starts, hits, side="right") - 1, return_index=True
        )
        # Segments: what is before a run, and the run, in turn; then the rest.
        bounds = np.stack([starts[runs], ends[runs]], axis=1).ravel()
        self.bounds = np.append(0, bounds)
        self.num_runs = len(runs)

    def __call__(self, counts: Float[np.ndarray, "n r"]) -> tuple[np.ndarray, np.ndarray]:
        """Area under the ROC curve and average precision of each resample; NaN if undefined."""
        if not self.num_runs:
            return (np.full(counts.shape[1], np.nan),) * 2
        # `reduceat` gives the first row of an empty segment, and refuses one at the end.
        padded = np.concatenate([counts[self.order], np.zeros((1, counts.shape[1]))])
        sums = np.add.reduceat(padded, self.bounds, axis=0)
        sums[np.diff(self.bounds, append=len(padded)) == 0] = 0
        predicted = np.cumsum(sums, axis=0)
        total, predicted, of_run = predicted[-1], predicted[1:-1:2], sums[1:-1:2]
        new_hits = np.add.reduceat(counts[self.hits], self.first_hits, axis=0)
        hits = np.cumsum(new_hits, axis=0)
        positives, wrong = hits[-1], predicted - hits
        negatives = total - positives
        # A positive outranks the negatives below its run, and half of those within.
        outranked = negatives - wrong + (of_run - new_hits) / 2
        area = ratio((new_hits * outranked).sum(axis=0), positives * negatives)
        precision = np.nan_to_num(ratio(hits, predicted))
        average = ratio((new_hits * precision).sum(axis=0), positives)
        return area, np.where(negatives > 0, average, np.nan)
