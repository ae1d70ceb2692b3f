"""How a network is held against a reference in PyTorch or Keras, on random weights."""

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
from .draws import images

# Of the reference's largest value, in each stage and in the logits.
BOUND = 1e-4
# (whether BatchNorm uses the batch's statistics, the type computed in). Each norm over the few
# values of a small batch enlarges what rounding has left: in float32 PyTorch itself is 6e-4 from
# its float64 in ResNet-101's last stage. So that mode is float64 on both sides.
MODES = ((False, "float32"), (True, "float64"))
# PyTorch's libraries share their layers: the batch's statistics are held against one of them.
RUNNING = MODES[:1]
# For gradients of deep networks with kinks: an activation within rounding of one passes its
# gradient in one computation and not in the next.
DOUBLE = ((False, "float64"), (True, "float64"))


def worst(ours, theirs):
    """The largest error relative to the reference's largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def ours(model, variables, x, train=False):
    """Our logits, stages (in order) and, with `train`, the updated running statistics.

    With `train` BatchNorm uses the batch's statistics; dropout must be 0 in the model.
    """

    # Compiling takes most of the time here; in float64 its last refinements are left out.
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
    """The error of each stage and of the logits; both are (logits, stages)."""
    logits = expected[0]
    # What the network makes of an image shows, not its biases alone.
    assert worst(logits[:1], logits[1:2]) > 1e-2
    pairs = zip([*found[1], found[0]], [*expected[1], logits], strict=True)
    return [worst(a, b) for a, b in pairs]


@contextlib.contextmanager
def _computing(model, variables, dtype):
    """The network and its variables in a type, in which JAX computes meanwhile."""
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
    """What the table calls a reference: its package, and the variant where that differs."""
    package = type(torch_model).__module__.partition(".")[0]
    return package if variant == package else f"{package} (variant {variant})"


class Parity:
    """Holds a network against a reference, and records the worst error for `--parity-table`."""

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
        """Our network with a linear head, and the shapes of its variables."""
        model = models.linear(name, 10, variant=variant, top=top)
        x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)
        return model, {
            "params": shapes["params"],
            "batch_stats": shapes.get("batch_stats", {}),
        }

    def from_torch(self, torch_model, name, table, variant="timm"):
        """Our network of `name`, with a linear head, and the torch model's weights in it."""
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
        """Logits, stages and updated running statistics, at every size and in every mode.

        A network without BatchNorm has but the first mode.
        """
        import torch

        reference = torch_reference.calibrated(torch_reference.comparable(torch_model))
        model, variables = self.from_torch(reference, name, table, variant)
        before, errors = torch_reference.running(reference), []
        for train, dtype in modes if variables["batch_stats"] else modes[:1]:
            reference = reference.to(getattr(torch, dtype))
            with _computing(model, variables, dtype) as (network, held):
                for size in sizes:
                    x = images(size).astype(dtype)
                    theirs = torch_reference.stages(reference, x, modules, train)
                    *found, updated = ours(network, held, x, train)
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
        """Logits and the named layers' outputs, with running statistics.

        Args:
          keras_model: with logits for its output; takes normalised images.
          name: of our network.
          layers: Keras's names of those whose outputs are our stages, or the outputs themselves.
          x: normalised RGB images.
          variant: of our network.
          bgr: whether Keras's network takes BGR.
          scale: of the images that Keras's network takes; it divides by this itself.
          top: as in `models.build`.
        """
        import keras

        model, shapes = self.linear(name, variant, top)
        outputs = [
            keras_model.get_layer(layer).output if isinstance(layer, str) else layer
            for layer in layers
        ]
        # Keras computes by JAX here, and leans on promotion.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            tensors = keras_reference.prepared(keras_model, x.shape[1], scale)
            whole = keras.Model(keras_model.inputs, [*outputs, keras_model.output])
            x_theirs = x[..., ::-1] if bgr else x * scale
            *stages, logits = jax.device_get(
                keras_reference.apply(whole, x_theirs, training=False)[0]
            )
        table = name_maps.name_map(models.architecture(name), "keras")
        found = ours(model, merge(tensors, table, shapes, location=name), x)[:2]
        self._settle(name, "keras", x.shape[1:2], _compared(found, (logits, stages)))

    def check_gradients(self, torch_model, name, table, *, variant="timm", size=49, modes=MODES):
        """The gradient of the cross-entropy with respect to every parameter, in every mode.

        With the batch's statistics, float32 does not settle the gradient: PyTorch's own float32
        is as far as 5e-3 from its float64. In float32 a single tensor may be 1e-3 off.
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
            with _computing(model, variables, dtype) as (network, held):
                gradient = jax.jit(jax.grad(_cross_entropy), static_argnums=(2, 5))
                arguments = (held["params"], held["batch_stats"], network, jnp.asarray(x), labels)
                found = flatten({"params": gradient(*arguments, train)})
            assert set(found) == set(expected)
            difference = {path: found[path] - expected[path] for path in expected}
            total = _norm(expected.values())
            totals.append(_norm(difference.values()) / total)
            for path, tensor in expected.items():
                # A bias that the next BatchNorm takes out again has a gradient of 0, but for
                # rounding.
                assert _norm([difference[path]]) <= 1e-3 * max(_norm([tensor]), 1e-9 * total), path
        self._settle(name, f"{_library(torch_model, variant)}: gradient", [size], totals)
