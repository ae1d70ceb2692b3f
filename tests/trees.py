"""Comparisons of pytrees, leaf by leaf."""

import jax
import numpy as np


def assert_trees_equal(found, expected):
    """Fails unless both trees have the same structure and equal leaves."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def assert_trees_close(found, expected, tolerance=1e-5):
    """Fails unless both trees have the same structure, and leaves equal within the tolerance."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        found,
        expected,
    )
