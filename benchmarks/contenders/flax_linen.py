"""The networks in plain Flax, trained as its users do: flax.linen's layers and an optax optimiser.

No operation of bloodjax is used, only its tables of architectures, so that a network has the same
layers, parameters and multiply-adds as ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from benchmarks.tasks import CLASSES, Task
from bloodjax.models import inception, registry

_ACTIVATIONS = {"silu": nn.silu, "relu6": nn.relu6}
_INCEPTION_PADDING = {"symmetric": "SAME", "valid": "VALID"}  # The same for stride 1.
_MOBILENET_STEM = 32


class Network(nn.Module):
    """A network with a linear classifier on the average of its last map.

    Attributes:
      network: Our name of the network.
      dtype: Compute dtype; parameters and logits are float32.
    """

    network: str
    dtype: DTypeLike = jnp.bfloat16

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w 3"], train: bool = False
    ) -> Float[Array, "b classes"]:
        """Returns logits; `train` lets BatchNorm use and track the batch's statistics."""
        architecture = registry.architecture(self.network)
        # timm's form, or the family's first: the one that `linear` builds.
        fields = {**architecture.fields, **next(iter(architecture.variants.values()))}
        features = _FAMILIES[architecture.family](self, x, train, **fields)
        return nn.Dense(CLASSES, name="head")(features.astype(jnp.float32))

    def conv(self, x, features, size, stride=1, padding="SAME", groups=1, bias=False):
        """A convolution; an integer `padding` is that many pixels on every side."""
        size = (size, size) if isinstance(size, int) else size
        return nn.Conv(
            features,
            size,
            stride,
            padding,
            feature_group_count=groups,
            use_bias=bias,
            dtype=self.dtype,
        )(x)

    def conv_norm(self, x, features, size, stride, train, *, epsilon=1e-5, **options):
        """A convolution and its BatchNorm."""
        x = self.conv(x, features, size, stride, **options)
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, epsilon=epsilon, dtype=self.dtype
        )(x)


def _convnext(net: Network, x, train, *, depths, widths, v2):
    del train, v2  # The tasks have the first version only.
    norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=net.dtype)
    x = norm()(net.conv(x, widths[0], 4, 4, "VALID", bias=True))
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        if stage > 0:
            x = net.conv(norm()(x), width, 2, 2, "VALID", bias=True)
        for block in range(depth):
            y = norm()(net.conv(x, width, 7, groups=width, bias=True))
            y = nn.gelu(nn.Dense(4 * width, dtype=net.dtype)(y), approximate=False)
            y = nn.Dense(width, dtype=net.dtype)(y)
            name = f"scale_{stage}_{block}"
            scale = net.param(name, nn.initializers.constant(1e-6), (width,))
            x = x + y * scale.astype(net.dtype)
    return norm()(x.mean(axis=(1, 2)))


def _efficientnet(
    net: Network, x, train, *, stages, stem, features, activation, squeeze, padding, epsilon
):
    act = _ACTIVATIONS[activation]
    conv = functools.partial(net.conv_norm, train=train, padding=padding.upper(), epsilon=epsilon)
    x = act(conv(x, stem, 3, 2))
    for stage in stages:
        for block in range(stage.blocks):
            y, hidden = x, stage.expand * x.shape[-1]
            if stage.expand != 1:
                y = act(conv(y, hidden, 1, 1))
            y = act(conv(y, hidden, stage.size, stage.stride if block == 0 else 1, groups=hidden))
            if squeeze:
                scale = nn.Dense(x.shape[-1] // 4, dtype=net.dtype)(y.mean(axis=(1, 2)))
                scale = nn.Dense(hidden, dtype=net.dtype)(act(scale))
                y = y * nn.sigmoid(scale)[:, None, None]
            y = conv(y, stage.channels, 1, 1)
            x = x + y if x.shape == y.shape else y
    return act(conv(x, features, 1, 1)).mean(axis=(1, 2))


def _resnet(net: Network, x, train, *, depths, bottleneck, widths=(64, 128, 256, 512)):
    del bottleneck  # The tasks have ResNet-50 only.
    conv = functools.partial(net.conv_norm, train=train)
    x = nn.relu(conv(x, widths[0], 7, 2, padding=3))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            y = nn.relu(conv(x, width, 1, 1))
            y = nn.relu(conv(y, width, 3, stride, padding=1))
            y = conv(y, 4 * width, 1, 1)
            x = conv(x, 4 * width, 1, stride) if x.shape != y.shape else x
            x = nn.relu(x + y)
    return x.mean(axis=(1, 2))


def _mobilenet(net: Network, x, train, *, multiplier):
    # At stride 2 SAME pads an even map as Keras's MobileNet does.
    conv = functools.partial(net.conv_norm, train=train, epsilon=1e-3)
    x = nn.relu6(conv(x, int(_MOBILENET_STEM * multiplier), 3, 2))
    widths = registry.architecture(net.network).backbone.widths
    depths = registry.architecture(net.network).backbone.depths
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            x = nn.relu6(conv(x, x.shape[-1], 3, stride, groups=x.shape[-1]))
            x = nn.relu6(conv(x, int(width * multiplier), 1, 1))
    return x.mean(axis=(1, 2))


def _inception(net: Network, x, train):
    def run(unit, x):
        padding = _INCEPTION_PADDING[unit.padding]
        options = {"train": train, "padding": padding, "epsilon": 1e-3}
        return nn.relu(net.conv_norm(x, unit.features, unit.size, unit.stride, **options))

    def step(step, x):
        if step == "avg":
            return nn.avg_pool(x, (3, 3), (1, 1), "SAME")
        if step == "max":
            return nn.max_pool(x, (3, 3), (2, 2))
        if isinstance(step, inception.Unit):
            return run(step, x)
        return jnp.concatenate([run(unit, x) for unit in step], axis=-1)

    for stem in inception.STEMS:
        for unit in stem:
            x = run(unit, x)
        x = nn.max_pool(x, (3, 3), (2, 2))
    for branches in inception.BLOCKS.values():
        ends = [functools.reduce(lambda y, s: step(s, y), branch, x) for branch in branches]
        x = jnp.concatenate(ends, axis=-1)
    return x.mean(axis=(1, 2))


def _vgg(net: Network, x, train, *, depths, norm):
    del train, norm  # The tasks have VGG-16 without BatchNorm.
    for depth, width in zip(
        depths, registry.architecture(net.network).backbone.widths, strict=True
    ):
        for _ in range(depth):
            x = nn.relu(net.conv(x, width, 3, bias=True))
        x = nn.max_pool(x, (2, 2), (2, 2))
    return x.mean(axis=(1, 2))


_FAMILIES: dict[str, Callable] = {
    "convnext": _convnext,
    "efficientnet": _efficientnet,
    "resnet": _resnet,
    "mobilenet": _mobilenet,
    "inception": _inception,
    "vgg": _vgg,
}


def lower(task: Task, machine: object, devices: Sequence[jax.Device]) -> jax.stages.Lowered:
    """The training step of a task, lowered for a device that need not exist.

    Args:
      task: A task of the kind "train".
      machine: Not used.
      devices: The machine's device.

    Returns:
      The step (state, uint8 images, int32 labels) -> (state, loss), whose state is donated.
    """
    model = Network(task.network, jnp.dtype(task.dtype))
    tx = optax.adamw(1e-4, weight_decay=0.05)

    def loss(params, stats, images, labels):
        x = (images.astype(jnp.float32) / 255.0 - 0.5) / 0.5
        variables = {"params": params, "batch_stats": stats}
        logits, updated = model.apply(
            variables, x.astype(model.dtype), train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updated.get("batch_stats", {})

    def step(state, images, labels):
        params, stats, moments = state
        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(
            params, stats, images, labels
        )
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), stats, moments), value

    images = jax.ShapeDtypeStruct((task.batch, task.size, task.size, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((task.batch,), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    params = variables["params"]
    state = (params, variables.get("batch_stats", {}), jax.eval_shape(tx.init, params))
    sharding = jax.sharding.SingleDeviceSharding(devices[0])
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        (state, images, labels),
    )
    return jax.jit(step, donate_argnums=0).lower(*placed)


def about() -> dict[str, str]:
    """Versions."""
    return {"flax": flax.__version__, "optax": optax.__version__}
