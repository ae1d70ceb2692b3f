import math

import numpy as np
import pytest

from bloodjax.metrics import significance

N = 400


@pytest.fixture(scope="module")
def answers():
    """Two classifiers that differ on 30 images, of which the first gets 22 right."""
    labels = np.random.default_rng(0).integers(0, 3, N)
    wrong = (labels + 1) % 3
    first, second = labels.copy(), labels.copy()
    first[:8], second[8:30] = wrong[:8], wrong[8:30]
    first[30:60], second[30:60] = wrong[30:60], wrong[30:60]
    return np.eye(3)[first], np.eye(3)[second], labels


def test_differences_and_counts(answers):
    result = significance.compare(*answers)
    assert result["accuracy"] == (N - 38) / N
    assert result["accuracy_without"] == (N - 52) / N
    assert result["difference"] == pytest.approx(14 / N)
    assert (result["mcnemar"]["gained"], result["mcnemar"]["lost"]) == (22, 8)
    tail = sum(math.comb(30, k) for k in range(9)) / 2**30
    assert result["mcnemar"]["p"] == pytest.approx(2 * tail)


def test_the_interval_is_that_of_resampled_pairs(answers):
    first, second, labels = answers
    change = (first.argmax(1) == labels).astype(int) - (second.argmax(1) == labels)
    rng = np.random.default_rng(1)
    draws = [change[rng.integers(0, N, N)].mean() for _ in range(10_000)]
    found = significance.compare(*answers, bootstrap=10_000)["ci95"]
    np.testing.assert_allclose(found, np.percentile(draws, [2.5, 97.5]), atol=0.003)


def test_the_same_answers_do_not_differ(answers):
    first, _, labels = answers
    result = significance.compare(first, first, labels, bootstrap=10)
    assert (result["difference"], result["ci95"]) == (0, [0, 0])
    assert result["mcnemar"] == {"gained": 0, "lost": 0, "p": 1.0}


def test_a_seed_gives_the_same_interval(answers):
    assert significance.compare(*answers, seed=3) == significance.compare(*answers, seed=3)
