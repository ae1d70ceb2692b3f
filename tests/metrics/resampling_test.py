import numpy as np
import pytest

from bloodjax.metrics import resampling
from bloodjax.metrics.resampling import expanded_percentile_interval


def test_a_resample_has_as_many_units_as_the_original(monkeypatch):
    monkeypatch.setattr(resampling, "MAX_ENTRIES", 70)
    chunks = list(resampling.draw_counts(5, 30, 0, rows=7))
    assert [chunk.shape for chunk in chunks] == [(5, 10)] * 3
    assert all((chunk.sum(axis=0) == 5).all() for chunk in chunks)
    assert [chunk.shape[1] for chunk in resampling.draw_counts(5, 30, 0)] == [14, 14, 2]


def test_resampled_means_vary_like_a_mean():
    values = np.random.default_rng(0).normal(size=(50, 2))
    means = resampling.resampled_means(values, 4000, 0)
    assert means.shape == (4000, 2)
    np.testing.assert_allclose(means.mean(axis=0), values.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(means.std(axis=0), values.std(axis=0) / 50**0.5, rtol=0.05)


def test_the_interval_of_few_groups_reaches_farther_than_the_percentiles():
    values = np.random.default_rng(0).normal(size=5000)
    plain = np.percentile(values, [2.5, 97.5])
    few = expanded_percentile_interval(values, np.full(5, 10))
    many = expanded_percentile_interval(values, np.full(400, 10))
    assert few[0] < plain[0] - 0.5
    assert few[1] > plain[1] + 0.5
    np.testing.assert_allclose(many, plain, atol=0.05)
    # 400 groups, of which one has nearly all images, say no more than one or two.
    lopsided = expanded_percentile_interval(values, np.array([100_000, *[1] * 399]))
    assert lopsided == [values.min(), values.max()]
    assert expanded_percentile_interval(np.full(9, np.nan), np.full(4, 1)) is None


def test_an_interval_without_width_is_none():
    assert resampling.with_width([1.0, 1.0]) is None
    assert resampling.with_width(None) is None
    assert resampling.with_width([0.9, 1.0]) == [0.9, 1.0]


@pytest.mark.parametrize(
    ("interval", "value", "expected"),
    [
        ([0.02, 0.05], 0.03, [0.01, 0.04]),
        ([0.04, 0.07], 0.03, [0.0, 0.03]),  # all resamples are larger
        ([0.0, 0.02], 0.03, [0.03, 0.06]),
        (None, 0.03, None),
    ],
)
def test_a_reflected_interval_contains_the_value(interval, value, expected):
    found = resampling.reflected(interval, value)
    assert found == (expected if expected is None else pytest.approx(expected))
