"""Comparison of a network with its reference in PyTorch or Keras, on random weights."""

import contextlib
import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np

from bloodjax import models
from bloodjax.pretrained import name_maps
from bloodjax.pretrained.merge import flatten, merge

from . import keras_reference, torch_reference
from .random_inputs import images

# Largest error of each stage and of the logits, relative to the reference's largest value.
BOUND = 1e-4
# (whether BatchNorm uses the batch's statistics, dtype). With the batch's statistics every norm
# amplifies rounding errors: in ResNet-101's last stage, PyTorch's float32 differs from its float64
# by 6e-4. Therefore that mode computes in float64 on both sides.
MODES = ((False, "float32"), (True, "float64"))
# timm and torchvision share PyTorch's layers, so the batch's statistics are compared with one only.
RUNNING = MODES[:1]
# For gradients of deep networks with ReLU: an activation within rounding of the kink passes its
# gradient in one computation and not in another.
DOUBLE = ((False, "float64"), (True, "float64"))


def worst(ours, theirs):
    """Returns the largest error, relative to the reference's largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def ours(model, variables, x, train=False):
    """Returns our logits, stages in order and, with `train`, the updated running statistics.

    With `train` BatchNorm uses the batch's statistics; the model's dropout rates must be 0.
    """

    # Compilation takes most of the time, so LLVM's optimisations are off in float64.
    options = {"xla_backend_optimization_level": 0} if x.dtype == np.float64 else {}

    @functools.partial(jax.jit, compiler_options=options)
    def apply(variables, x):
        return model.apply(
            variables,
            x,
            train=train,
            mutable=["intermediates", "batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )

    logits, updated = apply(variables, jnp.asarray(x))
    stages = flax.traverse_util.flatten_dict(updated["intermediates"], sep="/")
    ordered = [stages[k][0] for k in sorted(stages, key=lambda k: int(k.rsplit("_", 1)[1]))]
    return logits, ordered, updated.get("batch_stats", {})


def _compared(found, expected):
    """Returns the errors of all stages and of the logits; both arguments are (logits, stages)."""
    logits = expected[0]
    # The logits depend on the image, not on the biases alone.
    assert worst(logits[:1], logits[1:2]) > 1e-2
    pairs = zip([*found[1], found[0]], [*expected[1], logits], strict=True)
    return [worst(a, b) for a, b in pairs]


@contextlib.contextmanager
def _computing(model, variables, dtype):
    """Context in which JAX computes in a dtype; yields the network and its variables in it."""
    double = dtype == "float64"
    # The head's last layer mixes float32 with float64.
    promotion = jax.numpy_dtype_promotion("standard" if double else "strict")
    with jax.enable_x64(double), promotion:
        backbone = model.backbone.clone(dtype=dtype)
        cast = jax.tree.map(lambda a: jnp.asarray(a, dtype), variables)
        yield model.clone(backbone=backbone), cast


def _cross_entropy(params, batch_stats, model, x, labels, train):
    logits, _ = model.apply(
        {"params": params, "batch_stats": batch_stats},
        x,
        train=train,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


def _norm(tensors):
    return np.sqrt(sum(np.sum(np.square(tensor, dtype=np.float64)) for tensor in tensors))


def _library(torch_model, variant):
    """A reference's name in the table: its package, and the variant if that differs."""
    package = type(torch_model).__module__.partition(".")[0]
    return package if variant == package else f"{package} (variant {variant})"


class Parity:
    """Compares networks with references, and records the worst error for `--parity-table`."""

    worst = staticmethod(worst)
    images = staticmethod(images)
    randomised = staticmethod(torch_reference.randomised)

    def __init__(self, record):
        self._record = record

    def _settle(self, name, reference, sizes, errors):
        error = float(np.max(errors))  # nan where one is
        self._record("parity", (name, reference, tuple(sizes), error))
        print(f"{name}, {reference}, {sizes}: worst error {error:.1e}")
        assert error <= BOUND, errors

    @staticmethod
    def linear(name, variant, top=True):
        """Returns our network with a linear head, and the shapes of its variables."""
        model = models.linear(name, 10, variant=variant, top=top)
        x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)
        return model, {
            "params": shapes["params"],
            "batch_stats": shapes.get("batch_stats", {}),
        }

    def from_torch(self, torch_model, name, table, variant="timm"):
        """Returns our network with a linear head, and the torch model's weights for it."""
        model, shapes = self.linear(name, variant)
        tensors = {k: v.numpy() for k, v in torch_model.state_dict().items()}
        return model, merge(tensors, table, shapes, location=name)

    def check(
        self,
        torch_model,
        name,
        table,
        modules,
        *,
        variant="timm",
        sizes=(224, 96, 101),
        modes=MODES,
    ):
        """Compares logits, stages and updated running statistics, at every size, in every mode.

        A network without BatchNorm has the first mode only.
        """
        import torch

        reference = torch_reference.calibrated(torch_reference.comparable(torch_model))
        model, variables = self.from_torch(reference, name, table, variant)
        before, errors = torch_reference.running(reference), []
        for train, dtype in modes if variables["batch_stats"] else modes[:1]:
            reference = reference.to(getattr(torch, dtype))
            with _computing(model, variables, dtype) as (network, cast):
                for size in sizes:
                    x = images(size).astype(dtype)
                    theirs = torch_reference.stages(reference, x, modules, train)
                    *found, updated = ours(network, cast, x, train)
                    errors += _compared(found, theirs)
                    if train:
                        after = torch_reference.running(reference)
                        tensors = {name: tensor.numpy() for name, tensor in after.items()}
                        shapes = {"batch_stats": updated}
                        expected = merge(tensors, table, shapes, location=name)["batch_stats"]
                        found, expected = flatten(updated), flatten(expected)
                        errors += [worst(found[path], expected[path]) for path in expected]
                        reference.load_state_dict(before, strict=False)
        self._settle(name, _library(torch_model, variant), sizes, errors)

    def check_keras(
        self, keras_model, name, layers, x, *, variant="keras", bgr=False, scale=1, top=False
    ):
        """Compares logits and stages, in inference mode.

        Args:
          keras_model: maps normalised images to logits.
          name: name of our network.
          layers: names of the Keras layers whose outputs are our stages, or the outputs themselves.
          x: normalised RGB images.
          variant: variant of our network.
          bgr: whether the Keras network expects BGR images.
          scale: factor of the images for the Keras network, which divides by it itself.
          top: as in `models.build`.
        """
        import keras

        model, shapes = self.linear(name, variant, top)
        outputs = [
            keras_model.get_layer(layer).output if isinstance(layer, str) else layer
            for layer in layers
        ]
        # Keras runs on its JAX backend here, and relies on dtype promotion.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            tensors = keras_reference.prepared(keras_model, x.shape[1], scale)
            with_stages = keras.Model(keras_model.inputs, [*outputs, keras_model.output])
            x_theirs = x[..., ::-1] if bgr else x * scale
            *stages, logits = jax.device_get(
                keras_reference.apply(with_stages, x_theirs, training=False)[0]
            )
        table = name_maps.name_map(models.architecture(name), "keras")
        found = ours(model, merge(tensors, table, shapes, location=name), x)[:2]
        self._settle(name, "keras", x.shape[1:2], _compared(found, (logits, stages)))

    def check_gradients(self, torch_model, name, table, *, variant="timm", size=49, modes=MODES):
        """Compares the gradient of the cross-entropy for every parameter, in every mode.

        With the batch's statistics float32 is not precise enough: PyTorch's float32 differs from
        its float64 by up to 5e-3. A single tensor may differ by 1e-3.
        """
        import torch

        reference = torch_reference.comparable(torch_model)
        model, variables = self.from_torch(reference, name, table, variant)
        labels, totals = np.array([1, 7, 3, 1], np.int32), []
        for train, dtype in modes if variables["batch_stats"] else modes[:1]:
            x = images(size, batch=len(labels)).astype(dtype)
            reference.zero_grad()
            reference.train(train).to(getattr(torch, dtype))
            logits = reference(torch.tensor(x).permute(0, 3, 1, 2))
            torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long()).backward()
            expected = {k: tensor.grad.numpy() for k, tensor in reference.named_parameters()}
            shapes = {"params": variables["params"]}
            expected = flatten(merge(expected, table, shapes, location="gradients"))
            with _computing(model, variables, dtype) as (network, cast):
                gradient = jax.jit(jax.grad(_cross_entropy), static_argnums=(2, 5))
                arguments = (cast["params"], cast["batch_stats"], network, jnp.asarray(x), labels)
                found = flatten({"params": gradient(*arguments, train)})
            assert set(found) == set(expected)
            difference = {path: found[path] - expected[path] for path in expected}
            total = _norm(expected.values())
            totals.append(_norm(difference.values()) / total)
            for path, tensor in expected.items():
                # The gradient of a bias before a BatchNorm is 0 up to rounding.
                assert _norm([difference[path]]) <= 1e-3 * max(_norm([tensor]), 1e-9 * total), path
        self._settle(name, f"{_library(torch_model, variant)}: gradient", [size], totals)
