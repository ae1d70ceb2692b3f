"""Applies a policy to a batch, inside the training step.

The transform of each image (one table, one map, one matrix, several effects) is computed for all
images at once. How they are applied depends on the platform:

- On CPU, to one image after another, which skips the effects that an image does not have.
- On TPU, each effect to the images that have it (`chosen`), in forms without gathers (`planes`).
- Elsewhere, all effects to all images at once; the result is used where it applies.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Key, Num, PyTree

from bloodjax.augment import affine, beta, chosen, colour, geometry, planes
from bloodjax.augment.ops import EFFECTS, OPS, Setting
from bloodjax.augment.policy import Layer, Pass, Policy

# An example's key gives its view. Folded with this number and the following ones, it gives the
# random numbers of its passes.
_PASSES = 1


# The fields are annotated as trees, because they may have a leading axis for the batch.
@flax.struct.dataclass
class Samples:
    """Random choices for one image, for each layer.

    Attributes:
      chosen: int32 [layers], index of the operation in the layer's pool, or -1 for none.
      amount: float32 [layers], magnitude with its sign.
      key: [layers], random key for further random numbers of the operation.
    """

    chosen: PyTree
    amount: PyTree
    key: PyTree


@flax.struct.dataclass
class Transform:
    """The composed operations of one image.

    Attributes:
      table: float32 [256, 3], lookup table; see `colour`.
      map: float32 [2, 3], affine map; see `affine`.
      moved: Whether `map` is not the identity.
      matrix: float32 [3, 3], mixes channels; see `colour`.
      recoloured: Whether `matrix` is not the identity.
      effects: Name -> (whether the effect is applied, its parameters).
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
    form: str | None = None,
) -> Num[Array, "batch size size 3"]:
    """Augments each image; `policy.mix` is not applied here.

    Args:
      policy: The policy.
      keys: A random key for each example.
      images: Images with integer values in 0..255.
      form: How transforms are applied, a key of `FORMS`; by default the platform's.

    Returns:
      Images in 0..255: float32, or the dtype of `images` if the policy has views only.
    """
    images = geometry.random_view(keys, images, policy.views)
    for number, step in enumerate(policy.passes):
        if number:
            images = jnp.round(images)
        apply_pass = _mixture if step.width else _chain
        images = apply_pass(step, policy.fill, _fold_in(keys, _PASSES + number), images, form)
    return images


def _fold_in(keys: Key[Array, " batch"], number: int) -> Key[Array, " batch"]:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def sample(layers: tuple[Layer, ...], key: Key[Array, ""]) -> Samples:
    """Samples the random choices for one image."""

    def one(layer, key):
        which, on, amount, sign, rest = jax.random.split(key, 5)
        index = jax.random.randint(which, (), 0, len(layer.pool))
        applied = jax.random.uniform(on) < layer.p
        size = jax.random.uniform(amount, (), jnp.float32, layer.low, layer.high)
        signed = jnp.array([OPS[name].signed for name in layer.pool])[index]
        flip = signed & jax.random.bernoulli(sign)
        return jnp.where(applied, index, -1), jnp.where(flip, -size, size), rest

    keys = jax.random.split(key, len(layers))
    each = [one(layer, k) for layer, k in zip(layers, keys, strict=True)]
    return Samples(*(jnp.stack(field) for field in zip(*each, strict=True)))


def compose(
    layers: tuple[Layer, ...],
    size: tuple[int, int],
    samples: Samples,
    histogram: Float[Array, "256 3"] | None,
    by_layer: bool = False,
) -> Transform:
    """Composes the chosen operations of one image.

    Args:
      layers: The layers.
      size: (height, width) of the image.
      samples: Random choices for the layers.
      histogram: Histogram of the image; None if no operation needs it.
      by_layer: Composes maps and matrices once for a layer and not for each of its operations. The
        result may be rounded differently.
    """
    false = jnp.zeros((), bool)
    total = Transform(colour.identity_table(), affine.identity(), false, jnp.eye(3), false, {})
    for number, layer in enumerate(layers):
        counted = histogram
        if histogram is not None and number:
            counted = colour.counts(total.table, histogram)
        amount, key = samples.amount[number], samples.key[number]
        setting = Setting(amount, key, size, total.table, counted)
        before = total
        if by_layer:
            total = total.replace(map=affine.identity(), matrix=jnp.eye(3))
        for index, name in enumerate(layer.pool):
            applied = samples.chosen[number] == index
            total = _add(total, name, applied, OPS[name].make(setting), by_layer)
        if by_layer:
            total = total.replace(
                map=affine.compose(before.map, total.map),
                matrix=colour.then(before.matrix, total.matrix),
            )
    return total


def _add(
    total: Transform, name: str, applied: Bool[Array, ""], made: Any, by_layer: bool
) -> Transform:
    """Adds an operation to the transform, if it is `applied`."""
    kind = OPS[name].kind
    if kind == "table":
        return total.replace(table=jnp.where(applied, made, total.table))
    if kind == "affine":
        new = jnp.where(applied, made if by_layer else affine.compose(total.map, made), total.map)
        return total.replace(map=new, moved=total.moved | (applied & (name != "identity")))
    if kind == "matrix":
        new = made if by_layer else colour.then(total.matrix, made)
        new = jnp.where(applied, new, total.matrix)
        return total.replace(matrix=new, recoloured=total.recoloured | applied)
    on, before = total.effects.get(name, (applied, made))
    chosen = jax.tree.map(lambda new, old: jnp.where(applied, new, old), made, before)
    return total.replace(effects={**total.effects, name: (on | applied, chosen)})


def apply(
    pool: frozenset[str], fill: str, transform: Transform, image: Num[Array, "height width 3"]
) -> Float[Array, "height width 3"]:
    """Applies the transform to an image in 0..255; `pool` has all operations that may occur."""
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


def _chain(step: Pass, fill: str, keys, images, form: str | None):
    """Applies one random chain to each image."""
    samples = jax.vmap(lambda key: sample(step.layers, key))(keys)
    return _apply_samples(step, fill, samples, images, form)


def _mixture(step: Pass, fill: str, keys, images, form: str | None):
    """AugMix: mixes each image with several random chains, each of one or more layers."""

    def weights(key):
        chains, image, depths = jax.random.split(jax.random.fold_in(key, step.width), 3)
        dirichlet = beta.dirichlet(chains, step.alpha, step.width)
        own = beta.beta(image, step.alpha, step.alpha)
        depth = jax.random.randint(depths, (step.width,), 1, len(step.layers) + 1)
        return dirichlet, own, depth

    dirichlet, own, depth = jax.vmap(weights)(keys)
    total = jnp.zeros(images.shape, jnp.float32)
    for chain in range(step.width):
        samples = jax.vmap(lambda key: sample(step.layers, key))(_fold_in(keys, chain))
        used = jnp.arange(len(step.layers))[None] < depth[:, chain, None]
        samples = samples.replace(chosen=jnp.where(used, samples.chosen, -1))
        augmented = _apply_samples(step, fill, samples, images, form)
        total = total + augmented * dirichlet[:, chain, None, None, None]
    own = own[:, None, None, None]
    return images.astype(jnp.float32) * own + total * (1 - own)


def _apply_samples(step: Pass, fill: str, samples: Samples, images, form: str | None):
    forms = {name: functools.partial(function, step, fill) for name, function in FORMS.items()}
    if form is not None:
        return forms[form](samples, images)
    return lax.platform_dependent(
        samples,
        images,
        cpu=forms["one by one"],
        tpu=forms["by choice"],
        default=forms["all at once"],
    )


def _each_image(each: Callable, step: Pass, fill: str, samples: Samples, images):
    """Applies the transforms by `each`, which calls a function for each example."""
    size = images.shape[1:3]
    histograms = None
    if _uses_counts(step):
        needed = jax.vmap(lambda one: _needs_counts(step.layers, one))(samples)
        histograms = each(_histogram_if, needed, images)
    transforms = jax.vmap(lambda s, h: compose(step.layers, size, s, h))(samples, histograms)
    return each(lambda t, x: apply(step.pool, fill, t, x), transforms, images)


def _one_by_one(function: Callable, *arguments: PyTree) -> PyTree:
    return lax.map(lambda example: function(*example), arguments)


def _all_at_once(function: Callable, *arguments: PyTree) -> PyTree:
    return jax.vmap(function)(*arguments)


def _by_choice(step: Pass, fill: str, samples: Samples, images):
    """Applies each kind of operation to the images that chose it."""
    batch, *size, _ = images.shape
    x = planes.from_images(images)
    histograms = None
    if _uses_counts(step):
        needed = jax.vmap(lambda one: _needs_counts(step.layers, one))(samples)
        who = chosen.choose([needed])
        group = chosen.group_size(_share(step, lambda name: OPS[name].needs_counts), batch)
        none = jnp.zeros((batch, 256, 3))
        histograms = chosen.update(lambda _, x: planes.histogram(x), who, 0, group, none, x)
    transforms = jax.vmap(
        lambda sample, counted: compose(step.layers, tuple(size), sample, counted, by_layer=True)
    )(samples, histograms)

    steps = []  # (Who is changed, operations, function, parameters) in order of application.
    kinds = {OPS[name].kind for name in step.pool}
    if "table" in kinds:
        changed = (transforms.table != colour.identity_table()[None]).any((1, 2))
        steps.append((changed, _of_kind("table"), planes.look_up, transforms.table))
    resample = functools.partial(planes.resample, fill=fill)
    if "affine" in kinds:
        steps.append((transforms.moved, _of_kind("affine"), resample, transforms.map))
    if "matrix" in kinds:
        recoloured = transforms.recoloured
        steps.append((recoloured, _of_kind("matrix"), planes.mix_channels, transforms.matrix))
    for name, effect in EFFECTS.items():
        if name in step.pool:
            on, params = transforms.effects[name]
            function = planes.EFFECTS.get(name) or _of_planes(effect)
            steps.append((on, name.__eq__, function, params))
    if not steps:
        return planes.to_images(x)
    who = chosen.choose([on for on, *_ in steps])
    for number, (_, applies, function, params) in enumerate(steps):
        largest = planes.resampled_at_once(*size) if function is resample else None
        group = chosen.group_size(_share(step, applies), batch, largest)
        x = chosen.update(function, who, number, group, x, params)
    return planes.to_images(x)


def _of_kind(kind: str) -> Callable[[str], bool]:
    """Whether an operation is of the kind and changes something."""
    return lambda name: OPS[name].kind == kind and name != "identity"


def _of_planes(effect: Callable) -> Callable:
    """The function of planes of many images, from an effect on one image."""

    def function(x, params):
        return planes.from_images(jax.vmap(effect)(planes.to_images(x), params))

    return function


def _share(step: Pass, applies: Callable[[str], bool]) -> float:
    """Expected share of the images that get at least one of the operations."""
    without = 1.0
    for layer in step.layers:
        without *= 1 - layer.p * sum(map(applies, layer.pool)) / len(layer.pool)
    return 1 - without


# Name -> function of a pass, the fill, the samples and the images.
FORMS: dict[str, Callable] = {
    "one by one": functools.partial(_each_image, _one_by_one),
    "all at once": functools.partial(_each_image, _all_at_once),
    "by choice": _by_choice,
}


def _uses_counts(step: Pass) -> bool:
    return any(OPS[name].needs_counts for name in step.pool)


def _needs_counts(layers: tuple[Layer, ...], samples: Samples) -> Bool[Array, ""]:
    needed = [
        jnp.array([OPS[name].needs_counts for name in layer.pool])[samples.chosen[number]]
        & (samples.chosen[number] >= 0)
        for number, layer in enumerate(layers)
    ]
    return jnp.stack(needed).any()


def _histogram_if(needed, image):
    return lax.cond(needed, colour.histogram, lambda _: jnp.zeros((256, 3)), image)
