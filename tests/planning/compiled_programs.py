"""Compiles small training steps, and programs with faults that such steps had, for a machine.

python compiled_programs.py MACHINE DIR [NAME...] writes DIR/NAME.txt, the optimized HLO of each
program. It is a process of its own because the compiler for a machine that is not here must be set
up before JAX is.
"""

import functools
import os
import pathlib
import sys
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bloodjax import config as config_lib
from bloodjax.augment import pipeline
from bloodjax.augment.policy import Policy, parse
from bloodjax.checkpoints.state import TrainState
from bloodjax.data.batches import DeviceDataset
from bloodjax.models.convnext import ConvNeXt
from bloodjax.models.efficientnet import EfficientNet, Stage
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.ops import depthwise_gpu
from bloodjax.ops.depthwise import depthwise_conv
from bloodjax.planning import compilers, machines
from bloodjax.training import optim
from bloodjax.training.executor import JitExecutor
from bloodjax.training.step_config import Phase, StepConfig

# Images on the device. They are more than a TPU's on-chip memory holds, into which it would copy
# a smaller dataset.
IMAGES = 100_003
BATCH, SIZE, CLASSES = 32, 32, 8
BF16 = jnp.bfloat16
MICROSCOPE = "d4|choice('microscope', 0.8, 2)|erase(0.5, p=0.25)|mixup(0.2, p=0.25)"


def step(devices, backbone, augment="none", layout="data", size=SIZE):
    """A run's training step in bfloat16, lowered."""
    policy = parse(augment) if augment != "none" else Policy()
    network = Network(backbone, Head(CLASSES, hidden=(16,), dtype=BF16))
    config = StepConfig(network, (0.5,) * 3, (0.5,) * 3, BATCH, augment=policy)
    executor = JitExecutor(config, devices=devices, layout=layout)
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = dict(jax.eval_shape(network.init, jax.random.key(0), image))
    variables.setdefault("batch_stats", {})
    options = config_lib.defaults().phases.finetune
    tx = optim.optimizer(options, 16, variables["params"], variables["batch_stats"])
    state = jax.eval_shape(functools.partial(TrainState.create, tx=tx), variables)
    data = jax.eval_shape(
        DeviceDataset.of,
        jax.ShapeDtypeStruct((IMAGES, size, size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((IMAGES,), jnp.int32),
    )
    order = jax.ShapeDtypeStruct((IMAGES,), jnp.int32)
    weights = jax.ShapeDtypeStruct((CLASSES,), jnp.float32)
    arguments = _placed((data, order, weights), executor._replicated)
    state = jax.tree.map(_place, state, executor.layout.of(state))
    return executor.lower(Phase(options.freeze, tx), 1, state, *arguments)


def _place(x, sharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _placed(tree, sharding):
    return jax.tree.map(lambda x: _place(x, sharding), tree)


def _lower(devices, function, *shapes):
    arguments = _placed(shapes, jax.sharding.SingleDeviceSharding(devices[0]))
    return jax.jit(function).lower(*arguments)


def images_as_they_are(devices):
    """The batch's gather from [n, size, size, 3], which a TPU copies whole."""
    images = jax.ShapeDtypeStruct((IMAGES, SIZE, SIZE, 3), jnp.uint8)
    index = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    return _lower(devices, lambda images, index: images[index].astype(BF16), images, index)


class _Convolution(nn.Module):
    """A convolution and a sine.

    Attributes:
      dtype: Compute dtype of the convolution.
      kept: dtype of the map that the sine's gradient needs.
    """

    dtype: jnp.dtype
    kept: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(16, (3, 3), dtype=self.dtype)(x)
        x = jnp.sin(jax.lax.optimization_barrier(x.astype(self.kept)))
        return x.astype(jnp.float32).mean()


def _convolution(devices, dtype, kept):
    model = _Convolution(dtype, kept)
    x = jax.ShapeDtypeStruct((BATCH, 16, 16, 3), BF16)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    return _lower(devices, jax.grad(lambda variables, x: model.apply(variables, x)), variables, x)


def single_pixels(devices):
    """Resampling that looks up each pixel."""

    def shift(images, by):
        def one(image, by):
            rows, columns = jnp.mgrid[:SIZE, :SIZE]
            rows = jnp.clip(rows + by, 0, SIZE - 1)
            return image[rows, columns]

        return jax.vmap(one)(images, by)

    images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.float32)
    return _lower(devices, shift, images, jax.ShapeDtypeStruct((BATCH,), jnp.int32))


def by_choice(devices):
    """The augmentation that suits a TPU: loops over images that chose an effect."""
    policy = parse(MICROSCOPE)

    def augment(keys, images):
        keys = jax.random.wrap_key_data(keys)
        return pipeline.augment(policy, keys, images, form="by choice")

    keys = jax.ShapeDtypeStruct((BATCH, 2), jnp.uint32)
    images = jax.ShapeDtypeStruct((BATCH, SIZE, SIZE, 3), jnp.uint8)
    return _lower(devices, augment, keys, images)


def depthwise_kernels(devices):
    """A depthwise convolution and its gradients as Pallas kernels for a GPU."""

    def gradients(x, kernel):
        out, vjp = jax.vjp(functools.partial(depthwise_conv, stride=2), x, kernel)
        return out, *vjp(out)

    with mock.patch.dict(os.environ, {depthwise_gpu.FORCE: "pallas"}):
        x = jax.ShapeDtypeStruct((BATCH, 12, 12, 240), BF16)
        return _lower(devices, gradients, x, jax.ShapeDtypeStruct((5, 5, 240), BF16))


def gathered_twice(devices):
    """A parameter that is gathered for the forward pass, and again for the backward pass."""
    mesh = jax.sharding.Mesh(devices, ("data",))
    split, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))

    def function(w, x):
        first = jnp.tanh(x @ jax.lax.with_sharding_constraint(w, everywhere))
        w, first = jax.lax.optimization_barrier((w, first))
        return first @ jax.lax.with_sharding_constraint(w, everywhere).T

    w = _placed(jax.ShapeDtypeStruct((256, 256), jnp.float32), split)
    x = _placed(jax.ShapeDtypeStruct((BATCH, 256), jnp.float32), split)
    return jax.jit(function, out_shardings=split).lower(w, x)


STEPS = {
    # Larger maps, as a GPU's compiler computes the sums over smaller ones in another way.
    "convnext": lambda d: step(
        d, ConvNeXt(depths=(1, 1), widths=(32, 64), dtype=BF16), size=2 * SIZE
    ),
    "efficientnet": lambda d: step(
        d,
        EfficientNet(
            stages=(Stage(1, 16, 1), Stage(2, 24, 6, 3, 2)), stem=16, features=64, dtype=BF16
        ),
    ),
    "augmented": lambda d: step(d, SimpleCNN(widths=(16,) * 4, dtype=BF16), MICROSCOPE),
}
FSDP = {
    "fsdp": lambda d: step(
        d, ConvNeXt(depths=(1, 1), widths=(128, 256), dtype=BF16), layout="fsdp"
    ),
    "gathered_twice": gathered_twice,
}
FAULTS = {
    "images_as_they_are": images_as_they_are,
    "float32_maps": lambda d: _convolution(d, BF16, jnp.float32),
    "float32_convolution": lambda d: _convolution(d, jnp.float32, BF16),
    "single_pixels": single_pixels,
}
GPU = {"by_choice": by_choice, "depthwise_kernels": depthwise_kernels}


def main():
    machine, folder, *names = sys.argv[1:]
    machine = machines.machine(machine)
    compilers.prepare(machine)
    devices = compilers.devices(machine)
    programs = FSDP if machine.chips > 1 else {**STEPS, **FAULTS}
    if machine.platform == "cuda":
        programs |= GPU
    for name in names or programs:
        text = programs[name](devices).compile().as_text()
        pathlib.Path(folder, f"{name}.txt").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
