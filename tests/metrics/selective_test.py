import numpy as np
import pytest

from bloodjax.metrics import selective
from bloodjax.metrics.intervals import exact_interval
from bloodjax.metrics.selective import NOTHING_ANSWERED

CONFIDENCE = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
CORRECT = np.array([True, True, False, True, False])


def naive_aurc(confidence, correct):
    """Mean risk of the most confident k images, averaged over many orders within ties."""
    rng, areas = np.random.default_rng(0), []
    for _ in range(2000):
        order = np.lexsort((rng.random(len(correct)), -confidence))
        wrong = ~correct[order]
        areas.append(np.mean([wrong[:k].mean() for k in range(1, len(wrong) + 1)]))
    return np.mean(areas)


def test_aurc_is_the_mean_risk():
    risks = [0, 0, 1 / 3, 1 / 4, 2 / 5]
    assert selective.aurc(CONFIDENCE, CORRECT) == pytest.approx(np.mean(risks))
    order = np.random.default_rng(0).permutation(5)
    assert selective.aurc(CONFIDENCE[order], CORRECT[order]) == pytest.approx(np.mean(risks))


def test_aurc_averages_over_the_orders_of_ties():
    rng = np.random.default_rng(1)
    confidence, correct = rng.integers(4, size=30) / 4, rng.random(30) < 0.7
    expected = naive_aurc(confidence, correct)
    assert selective.aurc(confidence, correct) == pytest.approx(expected, abs=2e-3)


def test_aurc_of_perfect_and_of_useless_confidence():
    correct = np.arange(100) < 90
    best = selective.aurc(np.linspace(1, 0, 100), correct)
    worst = selective.aurc(np.linspace(0, 1, 100), correct)
    assert best < 0.1 * 0.1 / 2 + 1e-3
    assert worst > 0.2
    assert selective.aurc(np.ones(100), correct) == pytest.approx(0.1)
    assert selective.aurc(np.ones(3), np.ones(3, bool)) == 0


def test_the_interval_contains_the_area_and_is_reproducible():
    rng = np.random.default_rng(2)
    confidence = rng.random(300)
    correct = rng.random(300) < confidence
    low, high = selective.aurc_interval(confidence, correct, bootstrap=200, seed=1)
    assert low < selective.aurc(confidence, correct) < high
    assert (low, high) == selective.aurc_interval(confidence, correct, bootstrap=200, seed=1)
    areas = [selective.aurc(confidence[i], correct[i]) for i in rng.integers(300, size=(200, 300))]
    np.testing.assert_allclose([low, high], np.percentile(areas, [2.5, 97.5]), atol=0.02)


def test_the_interval_of_ties_varies_as_their_errors_do():
    """All images of one confidence: the area is the error, and its interval the error's."""
    correct = np.arange(100) >= 10
    low, high = selective.aurc_interval(np.ones(100), correct)
    rng = np.random.default_rng(1)
    errors = [(~correct)[rng.integers(100, size=100)].mean() for _ in range(2000)]
    np.testing.assert_allclose([low, high], np.percentile(errors, [2.5, 97.5]), atol=0.011)


def test_the_curve_has_few_points_and_ends_at_all_images():
    found = selective.curve(CONFIDENCE, CORRECT)
    assert found["coverage"] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert found["error"] == pytest.approx([0, 0, 1 / 3, 1 / 4, 2 / 5])
    for error, (low, high) in zip(found["error"], found["error_ci95"], strict=True):
        assert 0 <= low <= error <= high <= 1
    many = selective.curve(np.linspace(0, 1, 5000), np.ones(5000, bool))
    assert len(many["coverage"]) == selective.POINTS
    np.testing.assert_allclose(np.diff(many["coverage"]), 1 / selective.POINTS, atol=1e-3)
    assert many["coverage"][-1] == 1


@pytest.mark.parametrize(
    ("target", "threshold"),
    [(0.1, 0.8), (0.25, 0.6), (0.3, 0.6), (0.34, 0.6), (0.4, 0.5), (1e-9, 0.8)],
)
def test_the_threshold_answers_as_many_as_the_target_allows(target, threshold):
    assert selective.choose_threshold(CONFIDENCE, CORRECT, target) == threshold


def test_a_threshold_answers_all_images_of_equal_confidence():
    confidence, correct = np.array([0.9, 0.9, 0.5]), np.array([True, False, True])
    assert selective.choose_threshold(confidence, correct, 0.1) == NOTHING_ANSWERED
    assert selective.choose_threshold(confidence, correct, 0.5) == 0.5


def test_without_errors_the_threshold_is_the_lowest_confidence():
    assert selective.choose_threshold(CONFIDENCE, np.ones(5, bool), 0.005) == 0.5


def test_no_threshold_meets_the_target():
    threshold = selective.choose_threshold(CONFIDENCE, np.zeros(5, bool), 0.5)
    assert threshold == NOTHING_ANSWERED > CONFIDENCE.max()


def test_the_operating_point_counts_errors_among_the_answered():
    point = selective.operating_point(CONFIDENCE >= 0.6, CORRECT)
    assert (point["coverage"], point["error"]) == (0.8, 0.25)
    assert point["referred"] == pytest.approx(0.2)
    assert point["error_ci95"] == list(exact_interval(1, 4))
    nothing = selective.operating_point(np.zeros(5, bool), CORRECT)
    assert (nothing["coverage"], nothing["error"], nothing["error_ci95"]) == (0, None, None)
