"""Flips and quarter turns. They do not change the class of a cell, which has no orientation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Key, Num

# Set of views -> (transpose, flip up-down, flip left-right) of each view. The first view is the
# image itself. "d4" is the dihedral group of the square.
VIEWS: dict[str, tuple[tuple[bool, bool, bool], ...]] = {
    "none": ((False, False, False),),
    "flip": tuple((False, up, left) for up in (False, True) for left in (False, True)),
    "d4": tuple(
        (turn, up, left) for turn in (False, True) for up in (False, True) for left in (False, True)
    ),
}


def views(
    images: Num[Array, "batch size size channels"], name: str
) -> Num[Array, "views batch size size channels"]:
    """All views of each image, in the order of `VIEWS[name]`."""
    return jnp.stack([view(images, *flags) for flags in VIEWS[name]])


def random_index(keys: Key[Array, " batch"], name: str) -> Int32[Array, " batch"]:
    """A random index into `VIEWS[name]` for each key; all are equally likely."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, len(VIEWS[name])))(keys)


@jax.named_scope("augment")
def random_view(
    keys: Key[Array, " batch"], images: Num[Array, "batch size size channels"], name: str
) -> Num[Array, "batch size size channels"]:
    """A random view of each image: the one with the index `random_index(keys, name)`."""
    flags = jnp.array(VIEWS[name])[random_index(keys, name)]
    for axis, transform in enumerate((_transpose, _flip_up_down, _flip_left_right)):
        if any(view[axis] for view in VIEWS[name]):
            images = jnp.where(_per_image(flags[:, axis]), transform(images), images)
    return images


def view(
    images: Num[Array, "batch size size channels"], transpose: bool, up_down: bool, left_right: bool
) -> Num[Array, "batch size size channels"]:
    """One view of each image; the flags are an entry of `VIEWS`."""
    images = _transpose(images) if transpose else images
    images = _flip_up_down(images) if up_down else images
    return _flip_left_right(images) if left_right else images


def _transpose(images):
    return images.swapaxes(1, 2)


def _flip_up_down(images):
    return images[:, ::-1]


def _flip_left_right(images):
    return images[:, :, ::-1]


def _per_image(flags: Bool[Array, " batch"]) -> Bool[Array, "batch 1 1 1"]:
    return flags[:, None, None, None]
