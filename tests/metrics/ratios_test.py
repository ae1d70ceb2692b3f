import numpy as np

from bloodjax.metrics import ratios


def test_a_ratio_of_nothing_is_undefined():
    found = ratios.ratio(np.array([1.0, 0.0, 0.0]), np.array([2.0, 0.0, 4.0]))
    np.testing.assert_array_equal(found, [0.5, np.nan, 0.0])


def test_a_mean_is_over_what_is_defined():
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, np.nan]])
    np.testing.assert_array_equal(ratios.mean_of_defined(values), [2.0, np.nan])


def test_what_is_not_finite_is_none():
    found = [ratios.number_or_none(x) for x in (0.5, np.nan, np.inf)]
    assert found == [0.5, None, None]
