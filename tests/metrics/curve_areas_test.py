import numpy as np
import pytest
from sklearn import metrics as reference

from bloodjax.metrics.curve_areas import CurveAreas, RocArea


def examples():
    """Small sets with ties, and numbers of times that each image counts in three resamples."""
    rng = np.random.default_rng(1)
    for _ in range(30):
        n = int(rng.integers(2, 25))
        scores, positive = rng.integers(0, 6, n) / 6, rng.random(n) < 0.4
        yield scores, positive, rng.integers(0, 4, (n, 3)).astype(float)


def weighted(measure, positive, scores, weights):
    """scikit-learn's measure of weighted images; NaN if all of them are of one class."""
    if not 0 < (weights * positive).sum() < weights.sum():
        return np.nan
    return measure(positive, scores, sample_weight=weights)


def test_areas_of_resamples_are_those_of_weighted_images():
    for scores, positive, counts in examples():
        area, average = CurveAreas(scores, positive)(counts)
        for measure, found in (
            (reference.roc_auc_score, area),
            (reference.average_precision_score, average),
        ):
            expected = [weighted(measure, positive, scores, weights) for weights in counts.T]
            assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("size", [1, 3])
def test_areas_of_resampled_groups_are_those_of_weighted_images(size):
    for scores, positive, counts in examples():
        if not positive.any():
            continue
        unit = np.arange(len(scores)) // size
        of_groups = counts[: unit[-1] + 1]
        found = RocArea(scores, positive, unit, len(of_groups)).area(of_groups)
        expected = [
            weighted(reference.roc_auc_score, positive, scores, weights)
            for weights in of_groups[unit].T
        ]
        assert found == pytest.approx(expected, nan_ok=True)


def test_a_class_that_is_ranked_perfectly_has_one_row():
    scores, positive = np.linspace(0, 1, 50), np.arange(50) >= 40
    roc = RocArea(scores, positive, np.arange(50), 50)
    assert len(roc) == 1
    assert roc.area(np.ones((50, 1))).tolist() == [1.0]
