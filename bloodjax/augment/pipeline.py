"""A policy carried out on a batch, inside the training step.

What each image's draws come to (one table, one map, one matrix, a few effects) is computed for
all of them at once. Images go through it one after the other on CPU, where an effect that a
image did not draw is then skipped; elsewhere all at once, where every effect is computed for
every image and most results are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key, Num, PyTree

from bloodjax.augment import affine, colour, geometry
from bloodjax.augment.ops import EFFECTS, OPS, Setting
from bloodjax.augment.policy import Layer, Pass, Policy

# An example's key draws its view; folded with this number and the next ones, it draws its passes.
_PASSES = 1


# As trees, the fields may hold those of a whole batch along a leading axis as well.
@flax.struct.dataclass
class Draws:
    """Of one image, layer by layer.

    Attributes:
      chosen: int32 [layers], an operation's place in the layer's pool, or -1: none.
      amount: float32 [layers], its magnitude, with a sign.
      key: [layers], of whatever else it draws.
    """

    chosen: PyTree
    amount: PyTree
    key: PyTree


@flax.struct.dataclass
class Transform:
    """What one image's draws come to.

    Attributes:
      table: float32 [256, 3], new values; see `colour`.
      map: float32 [2, 3], places; see `affine`.
      moved: whether the map is not the identity.
      matrix: float32 [3, 3], a mixture of channels.
      recoloured: whether it is not the identity.
      effects: name -> (whether it was drawn, its parameters).
    """

    table: PyTree
    map: PyTree
    moved: PyTree
    matrix: PyTree
    recoloured: PyTree
    effects: dict[str, tuple[PyTree, PyTree]]


@jax.named_scope("augment")
def augment(
    policy: Policy,
    keys: Key[Array, " batch"],
    images: Num[Array, "batch size size 3"],
    *,
    devices: int = 1,
) -> Num[Array, "batch size size 3"]:
    """Every image as the policy has it, but for `mix`.

    Args:
      policy: what to draw from.
      keys: one an example.
      images: whole numbers in 0..255.
      devices: that share the batch, under jit.

    Returns:
      Images in 0..255: float32, or in the dtype of `images` where there are views only.
    """
    images = geometry.random_view(keys, images, policy.views)
    for number, step in enumerate(policy.passes):
        if number:
            images = jnp.round(images)
        run = _mixture if step.width else _chain
        images = run(step, policy.fill, _folded(keys, _PASSES + number), images, devices)
    return images


def _folded(keys: Key[Array, " batch"], number: int) -> Key[Array, " batch"]:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def draw(layers: tuple[Layer, ...], key: Key[Array, ""]) -> Draws:
    """One image's draws."""

    def one(layer, key):
        which, on, amount, sign, rest = jax.random.split(key, 5)
        index = jax.random.randint(which, (), 0, len(layer.pool))
        taken = jax.random.uniform(on) < layer.p
        size = jax.random.uniform(amount, (), jnp.float32, layer.low, layer.high)
        signed = jnp.array([OPS[name].signed for name in layer.pool])[index]
        flip = signed & jax.random.bernoulli(sign)
        return jnp.where(taken, index, -1), jnp.where(flip, -size, size), rest

    keys = jax.random.split(key, len(layers))
    drawn = [one(layer, k) for layer, k in zip(layers, keys, strict=True)]
    return Draws(*(jnp.stack(part) for part in zip(*drawn, strict=True)))


def compose(
    layers: tuple[Layer, ...],
    size: tuple[int, int],
    draws: Draws,
    histogram: Float[Array, "256 3"] | None,
) -> Transform:
    """What one image's draws come to.

    Args:
      layers: what was drawn from.
      size: (height, width) of the image.
      draws: what was drawn.
      histogram: of the image; None where no operation asks for it.
    """
    false = jnp.zeros((), bool)
    total = Transform(colour.identity_table(), affine.identity(), false, jnp.eye(3), false, {})
    for number, layer in enumerate(layers):
        counted = None if histogram is None else colour.counts(total.table, histogram)
        amount, key = draws.amount[number], draws.key[number]
        setting = Setting(amount, key, size, total.table, counted)
        for index, name in enumerate(layer.pool):
            total = _with(total, name, draws.chosen[number] == index, OPS[name].make(setting))
    return total


def _with(total: Transform, name: str, taken: Bool[Array, ""], made: Any) -> Transform:
    """The transform with one more operation in it, where that was `taken`."""
    kind = OPS[name].kind
    if kind == "table":
        return total.replace(table=jnp.where(taken, made, total.table))
    if kind == "affine":
        new = jnp.where(taken, affine.compose(total.map, made), total.map)
        return total.replace(map=new, moved=total.moved | (taken & (name != "identity")))
    if kind == "matrix":
        new = jnp.where(taken, colour.then(total.matrix, made), total.matrix)
        return total.replace(matrix=new, recoloured=total.recoloured | taken)
    on, before = total.effects.get(name, (taken, made))
    chosen = jax.tree.map(lambda new, old: jnp.where(taken, new, old), made, before)
    return total.replace(effects={**total.effects, name: (on | taken, chosen)})


def apply(
    pool: frozenset[str], fill: str, transform: Transform, image: Num[Array, "height width 3"]
) -> Float[Array, "height width 3"]:
    """The image, in 0..255, after what its draws come to; `pool` is all that could be drawn."""
    kinds = {OPS[name].kind for name in pool}
    if "table" in kinds:
        image = colour.look_up(image, transform.table)
    if "affine" in kinds:
        image = lax.cond(
            transform.moved,
            lambda x: affine.resample(x, transform.map, fill),
            lambda x: x.astype(jnp.float32),
            image,
        )
    image = image.astype(jnp.float32)
    if "matrix" in kinds:
        image = lax.cond(
            transform.recoloured,
            lambda x: colour.mix_channels(x, transform.matrix),
            lambda x: x,
            image,
        )
    for name, effect in EFFECTS.items():
        if name in pool:
            on, params = transform.effects[name]
            image = lax.cond(on, effect, lambda x, _: x, image, params)
    return image


def _chain(step: Pass, fill: str, keys, images, devices: int):
    """Each image through one draw of the layers."""
    draws = jax.vmap(lambda key: draw(step.layers, key))(keys)
    return _carried_out(step, fill, draws, images, devices)


def _mixture(step: Pass, fill: str, keys, images, devices: int):
    """AugMix: each image mixed with several chains of its own, of one to `depth` layers."""

    def weights(key):
        parts, whole, depths = jax.random.split(jax.random.fold_in(key, step.width), 3)
        dirichlet = jax.random.dirichlet(parts, jnp.full(step.width, step.alpha))
        own = jax.random.beta(whole, step.alpha, step.alpha)
        depth = jax.random.randint(depths, (step.width,), 1, len(step.layers) + 1)
        return dirichlet, own, depth

    dirichlet, own, depth = jax.vmap(weights)(keys)
    total = jnp.zeros(images.shape, jnp.float32)
    for chain in range(step.width):
        draws = jax.vmap(lambda key: draw(step.layers, key))(_folded(keys, chain))
        done = jnp.arange(len(step.layers))[None] < depth[:, chain, None]
        draws = draws.replace(chosen=jnp.where(done, draws.chosen, -1))
        changed = _carried_out(step, fill, draws, images, devices)
        total = total + changed * dirichlet[:, chain, None, None, None]
    own = own[:, None, None, None]
    return images.astype(jnp.float32) * own + total * (1 - own)


def _carried_out(step: Pass, fill: str, draws: Draws, images, devices: int):
    size = images.shape[1:3]
    histograms = None
    if any(OPS[name].needs_counts for name in step.pool):
        asked = jax.vmap(lambda one: _asks_for_counts(step.layers, one))(draws)
        histograms = _each(_histogram_if, devices, asked, images)
    transforms = jax.vmap(lambda d, h: compose(step.layers, size, d, h))(draws, histograms)
    return _each(lambda t, x: apply(step.pool, fill, t, x), devices, transforms, images)


def _asks_for_counts(layers: tuple[Layer, ...], draws: Draws) -> Bool[Array, ""]:
    asking = [
        jnp.array([OPS[name].needs_counts for name in layer.pool])[draws.chosen[number]]
        & (draws.chosen[number] >= 0)
        for number, layer in enumerate(layers)
    ]
    return jnp.stack(asking).any()


def _histogram_if(asked, image):
    return lax.cond(asked, colour.histogram, lambda _: jnp.zeros((256, 3)), image)


def _each(function: Callable, devices: int, *arguments: PyTree) -> PyTree:
    """`function` of each example; see the module's docstring."""

    def one_by_one(*arguments):
        return lax.map(lambda example: function(*example), arguments)

    def shared_out(*arguments):
        # Each device goes through its own examples: a loop over all of them would fetch each one.
        parts = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), arguments)
        done = jax.vmap(one_by_one)(*parts)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), done)

    return lax.platform_dependent(
        *arguments,
        cpu=one_by_one if devices == 1 else shared_out,
        default=jax.vmap(function),
    )
