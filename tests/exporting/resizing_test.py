import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.data import images
from bloodjax.errors import UserError
from bloodjax.exporting import resizing


@functools.cache
def _program(fit):
    """Resizing to 24 pixels of images of any size, compiled anew for each size."""
    shape = jax.export.symbolic_shape("batch, height, width, 3")
    function = jax.jit(lambda images: resizing.to_square(images, 24, fit))
    exported = jax.export.export(function)(jax.ShapeDtypeStruct(shape, jnp.uint8))
    return jax.jit(jax.export.deserialize(exported.serialize()).call)


# Enlarged, reduced, both; columns first, rows first; half pixels; a row; the size itself.
@pytest.mark.parametrize("size", [(17, 9), (83, 25), (25, 60), (1, 30), (24, 24)])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash", "11px", "40px"])
def test_equals_pillow_in_every_pixel(fit, size):
    given = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    np.testing.assert_array_equal(_program(fit)(given), images.resize(given, 24, fit))


def test_a_size_that_is_known_needs_no_operation():
    given = jnp.zeros((2, 24, 24, 3), jnp.uint8)
    assert resizing.to_square(given, 24, "crop") is given


def test_an_unknown_fit_is_refused():
    with pytest.raises(UserError, match="fit is 'zoom', expected crop, pad, squash, or a number"):
        resizing.to_square(jnp.zeros((1, 8, 9, 3), jnp.uint8), 24, "zoom")
