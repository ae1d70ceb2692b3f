import numpy as np
import pytest
from scipy.stats import norm

from bloodjax.metrics import intervals


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 9), (20, 20), (3380, 3421)])
def test_wilson_interval_is_wilson_s_formula(successes, trials):
    z, share = norm.ppf(0.975), successes / trials
    centre = share + z**2 / (2 * trials)
    half = z * np.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    expected = [(centre + sign * half) / (1 + z**2 / trials) for sign in (-1, 1)]
    assert intervals.wilson_interval(successes, trials) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_interval_rejects_impossible_counts(successes, trials):
    with pytest.raises(ValueError, match="successes"):
        intervals.wilson_interval(successes, trials)


def test_wilson_s_intervals_at_once_are_those_of_each():
    hits, n = np.array([0, 1, 3, 20, 77]), np.array([1, 1, 9, 20, 500])
    expected = [
        intervals.wilson_interval(*pair) for pair in zip(hits.tolist(), n.tolist(), strict=True)
    ]
    np.testing.assert_allclose(intervals.wilson_intervals(hits, n), expected, atol=1e-12)


def test_the_interval_of_a_mean_recall_covers_the_truth():
    """For 300 samples with a rare class, about 95 % of the intervals contain the mean recall."""
    truth, sizes = np.array([0.99, 0.97, 0.8]), (200, 100, 13)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        hits = [int(rng.binomial(n, p)) for n, p in zip(sizes, truth, strict=True)]
        shares = [hit / n for hit, n in zip(hits, sizes, strict=True)]
        limits = [intervals.wilson_interval(h, n) for h, n in zip(hits, sizes, strict=True)]
        low, high = intervals.mean_interval(shares, limits, 3)
        covered += low <= truth.mean() <= high
    assert 0.92 * 300 <= covered <= 0.995 * 300


def test_the_exact_interval_covers_a_rare_error_as_often_as_it_says():
    n, p = 400, 0.004
    counts = np.random.default_rng(0).binomial(n, p, size=2000)
    limits = {int(k): intervals.exact_interval(int(k), n) for k in np.unique(counts)}
    covered = np.mean([limits[int(k)][0] <= p <= limits[int(k)][1] for k in counts])
    assert covered >= 0.95
    assert intervals.exact_interval(0, 400)[1] == pytest.approx(1 - 0.025 ** (1 / 400))
    with pytest.raises(ValueError, match="5 successes in 4"):
        intervals.exact_interval(5, 4)
