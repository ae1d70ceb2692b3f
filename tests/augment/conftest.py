"""Fixtures that run an operation on one image, compiled, with traced parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment import planes


@pytest.fixture
def run():
    """Calls `op(*arguments, **static)` under jit and returns the image as a NumPy array."""

    def call(op, *arguments, **static):
        found = jax.jit(functools.partial(op, **static) if static else op)(*arguments)
        assert found.dtype == jnp.float32
        return np.asarray(found)

    return call


@pytest.fixture
def agree():
    """Checks that `op` under vmap and lax.map equals `op` on single images, within 0..255."""

    def check(op, image, *parameters, share=1.0):
        """`parameters` have a leading axis; `share` of the values must agree."""
        n = len(parameters[0])
        arguments = (jnp.stack([np.roll(image, 5 * i, axis=1) for i in range(n)]), *parameters)
        alone = np.stack([jax.jit(op)(*(a[i] for a in arguments)) for i in range(n)])
        assert alone.shape == (n, *image.shape)
        assert alone.min() >= 0
        assert alone.max() <= 255
        together = jax.jit(jax.vmap(op))(*arguments)
        mapped = jax.jit(lambda *rest: jax.lax.map(lambda each: op(*each), rest))(*arguments)
        for found in (together, mapped):
            assert found.dtype == jnp.float32
            assert np.isclose(found, alone, rtol=0, atol=2e-3).mean() >= share

    return check


@pytest.fixture(params=["images", "planes"])
def in_form(request):
    """Gives an operation on one image, from its form for images or from that for planes."""

    def choose(on_image, on_planes):
        if request.param == "images":
            return on_image

        def on_one(image, *parameters):
            batched = (jnp.asarray(parameter)[None] for parameter in parameters)
            return planes.to_images(on_planes(planes.from_images(image[None]), *batched))[0]

        return on_one

    return choose
