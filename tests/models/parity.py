"""How a network is held against a reference in PyTorch or Keras, on random weights."""

import contextlib
import functools
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np

from bloodjax import models
from bloodjax.pretrained import rules
from bloodjax.pretrained.merge import flatten, merge

# Of the reference's largest value, in each stage and in the logits.
BOUND = 1e-4
# (whether BatchNorm uses the batch's statistics, the type computed in). Each norm over the few
# values of a small batch enlarges what rounding has left: in float32 PyTorch itself is 6e-4 from
# its float64 in ResNet-101's last stage. So that mode is float64 on both sides.
MODES = ((False, "float32"), (True, "float64"))


# For gradients of deep networks with kinks: an activation within rounding of one passes its
# gradient in one computation and not in the next.
DOUBLE = ((False, "float64"), (True, "float64"))


# Squeeze-and-excitation's layers, as timm, torchvision and Keras call them.
_EXCITATION = re.compile(r"\.se\.|\.block\.\d+\.fc\d|se_reduce|se_expand")


def _scale(name, fan_in):
    """A kernel's standard deviation.

    What signals are multiplied by stays near 1/2: products of products would enlarge rounding.
    """
    return (2.0 / fan_in) ** 0.5 * (0.1 if _EXCITATION.search(name) else 1.0)


def randomised(model, seed=0):
    """A torch model with every tensor drawn anew, so that no zero or one hides a mistake."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.ndim > 1:
                scale = _scale(name, tensor[0].numel())
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
            elif name.endswith(("weight", "gamma")):
                tensor.copy_(0.7 + 0.6 * torch.rand(tensor.shape, generator=generator))
            else:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


def _keras_randomised(layer, rng):
    """Draws a Keras layer's weights anew."""
    if type(layer).__name__ == "Normalization":
        return  # of the pictures
    for weight in layer.weights:
        shape, kind = tuple(weight.shape), weight.name
        if kind == "kernel":
            depthwise = type(layer).__name__ == "DepthwiseConv2D"
            fan_in = np.prod(shape[: 2 if depthwise else -1])
            weight.assign(_scale(layer.name, fan_in) * rng.standard_normal(shape))
        elif kind in ("gamma", "moving_variance") or type(layer).__name__ == "LayerScale":
            weight.assign(rng.uniform(0.7, 1.3, shape))
        else:
            weight.assign(rng.normal(0.0, 0.1, shape))


def _keras_apply(model, x, training):
    """A Keras model's outputs, and its other state after them."""
    apply = jax.jit(functools.partial(model.stateless_call, training=training))
    variables = (model.trainable_variables, model.non_trainable_variables)
    return apply(*([variable.value for variable in each] for each in variables), x)


def keras_prepared(model, size, scale):
    """Draws every weight of a Keras model anew; returns them by `layer/variable`."""
    rng = np.random.default_rng(0)
    # ConvNeXt's layers are partly in models of their own.
    layers = [inner for outer in model.layers for inner in getattr(outer, "layers", [outer])]
    norms = [layer for layer in layers if type(layer).__name__ == "BatchNormalization"]
    for layer in layers:
        _keras_randomised(layer, rng)
    if norms:  # as `calibrated` does
        for norm in norms:
            norm.momentum = 0.0
        _, state = _keras_apply(model, pictures(size, batch=8) * scale, training=True)
        for variable, value in zip(model.non_trainable_variables, state, strict=True):
            variable.assign(value)
        for norm in norms:
            mean, variance = np.asarray(norm.moving_mean), np.asarray(norm.moving_variance)
            about = rng.uniform(-0.3, 0.3, (2, *mean.shape))
            norm.moving_mean.assign(mean + about[0] * variance**0.5)
            norm.moving_variance.assign(variance * (1 + about[1]))
    return {f"{layer.name}/{w.name}": np.asarray(w) for layer in layers for w in layer.weights}


def worst(ours, theirs):
    """The largest error relative to the reference's largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def pictures(size, batch=2):
    """Normalised random NHWC pictures, each with a tint of its own, the same at every size.

    Noise alone is the same in every picture once it is averaged, as features are.
    """

    def picture(i):
        rng = np.random.default_rng(i)
        return rng.normal(size=3) + rng.normal(size=(size, size, 3))

    return np.stack([picture(i) for i in range(batch)]).astype(np.float32)


def ours(model, variables, x, train=False):
    """Our logits, stages (in order) and, with `train`, the updated running statistics.

    With `train` BatchNorm uses the batch's statistics; dropout must be 0 in the model.
    """

    @jax.jit
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
    # What the network makes of a picture shows, not its biases alone.
    assert worst(logits[:1], logits[1:2]) > 1e-2
    pairs = zip([*found[1], found[0]], [*expected[1], logits], strict=True)
    return [worst(a, b) for a, b in pairs]


def _norms(model):
    import torch

    return [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]


def comparable(model):
    """A torch model with random weights that trains as ours does in these tests.

    It drops nothing. Its running averages take in a tenth, and of the variance the biased one, as
    ours do; PyTorch's is n / (n - 1) of that.
    """

    def bias(norm, inputs, _):
        if norm.training:
            x = inputs[0].detach()
            excess = x.var((0, 2, 3)) / (x.numel() / x.shape[1])
            # A new tensor: the backward pass wants the old one as it is.
            norm.running_var = norm.running_var - norm.momentum * excess

    for module in model.modules():
        if type(module).__name__ in ("Dropout", "StochasticDepth"):
            module.p = 0.0
    for norm in _norms(model):
        norm.momentum = 0.1
        norm.register_forward_hook(bias)
    return randomised(model)


def calibrated(model):
    """The same model with running statistics near those of pictures.

    So signals neither die out in a deep network, nor explode.
    """
    import torch

    norms, generator = _norms(model), torch.Generator().manual_seed(3)
    model.eval()
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    if norms:
        with torch.no_grad():
            model(torch.tensor(pictures(224, batch=4)).permute(0, 3, 1, 2))
    for norm in norms:
        norm.momentum = 0.1
        about = 0.6 * torch.rand((2, norm.num_features), generator=generator) - 0.3
        norm.running_mean = norm.running_mean + about[0] * norm.running_var.sqrt()
        norm.running_var = norm.running_var * (1 + about[1])
    return model


def torch_stages(model, x, modules, train=False):
    """A torch model's logits, and the outputs of the named modules as NHWC maps."""
    import torch

    kept, hooks = {}, []
    for name in modules:
        hooks.append(
            model.get_submodule(name).register_forward_hook(
                lambda _, __, out, name=name: kept.__setitem__(name, out)
            )
        )
    model.train(train)
    with torch.no_grad():
        logits = model(torch.tensor(x).permute(0, 3, 1, 2))
    for hook in hooks:
        hook.remove()
    return logits.numpy(), [kept[name].permute(0, 2, 3, 1).numpy() for name in modules]


def _running(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "running_" in k}


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


def _library(torch_model, flavour):
    """What the table calls a reference: its package, and the flavour where that differs."""
    package = type(torch_model).__module__.partition(".")[0]
    return package if flavour == package else f"{package} (flavour {flavour})"


class Parity:
    """Holds a network against a reference, and records the worst error for `--parity-table`."""

    worst = staticmethod(worst)
    pictures = staticmethod(pictures)
    randomised = staticmethod(randomised)

    def __init__(self, record):
        self._record = record

    def _settle(self, name, reference, sizes, errors):
        error = float(np.max(errors))  # nan where one is
        self._record("parity", (name, reference, tuple(sizes), error))
        print(f"{name}, {reference}, {sizes}: worst error {error:.1e}")
        assert error <= BOUND, errors

    @staticmethod
    def linear(name, flavour, top=True):
        """Our network with a linear head, and the shapes of its variables."""
        model = models.linear(name, 10, flavour=flavour, top=top)
        x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        shapes = jax.eval_shape(model.init, jax.random.key(0), x)
        return model, {
            "params": shapes["params"],
            "batch_stats": shapes.get("batch_stats", {}),
        }

    def from_torch(self, torch_model, name, table, flavour="timm"):
        """Our network of `name`, with a linear head, and the torch model's weights in it."""
        model, shapes = self.linear(name, flavour)
        tensors = {k: v.numpy() for k, v in torch_model.state_dict().items()}
        return model, merge(tensors, table, shapes, source=name)

    def check(
        self,
        torch_model,
        name,
        table,
        modules,
        *,
        flavour="timm",
        sizes=(224, 96, 101),
        modes=MODES,
    ):
        """Logits, stages and updated running statistics, at every size and in every mode.

        A network without BatchNorm has but the first mode.
        """
        import torch

        reference = calibrated(comparable(torch_model))
        model, variables = self.from_torch(reference, name, table, flavour)
        before, errors = _running(reference), []
        for train, dtype in modes if variables["batch_stats"] else modes[:1]:
            reference = reference.to(getattr(torch, dtype))
            with _computing(model, variables, dtype) as (network, held):
                for size in sizes:
                    x = pictures(size).astype(dtype)
                    theirs = torch_stages(reference, x, modules, train)
                    *found, updated = ours(network, held, x, train)
                    errors += _compared(found, theirs)
                    if train:
                        tensors = {k: v.numpy() for k, v in _running(reference).items()}
                        expected = merge(tensors, table, {"batch_stats": updated}, source=name)[
                            "batch_stats"
                        ]
                        found, expected = flatten(updated), flatten(expected)
                        errors += [worst(found[path], expected[path]) for path in expected]
                        reference.load_state_dict(before, strict=False)
        self._settle(name, _library(torch_model, flavour), sizes, errors)

    def check_keras(
        self, keras_model, name, layers, x, *, flavour="keras", bgr=False, scale=1, top=False
    ):
        """Logits and the named layers' outputs, with running statistics.

        Args:
          keras_model: with logits for its output; takes normalised pictures.
          name: of our network.
          layers: Keras's names of those whose outputs are our stages, or the outputs themselves.
          x: normalised RGB pictures.
          flavour: of our network.
          bgr: whether Keras's network takes BGR.
          scale: of the pictures that Keras's network takes; it divides by this itself.
          top: as in `models.build`.
        """
        import keras

        model, shapes = self.linear(name, flavour, top)
        outputs = [
            keras_model.get_layer(layer).output if isinstance(layer, str) else layer
            for layer in layers
        ]
        # Keras computes by JAX here, and leans on promotion.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            tensors = keras_prepared(keras_model, x.shape[1], scale)
            whole = keras.Model(keras_model.inputs, [*outputs, keras_model.output])
            x_theirs = x[..., ::-1] if bgr else x * scale
            *stages, logits = jax.device_get(_keras_apply(whole, x_theirs, training=False)[0])
        table = rules.table(models.registry.family(name), "keras", name)
        found = ours(model, merge(tensors, table, shapes, source=name), x)[:2]
        self._settle(name, "keras", x.shape[1:2], _compared(found, (logits, stages)))

    def check_gradients(self, torch_model, name, table, *, flavour="timm", size=49, modes=MODES):
        """The gradient of the cross-entropy with respect to every parameter, in every mode.

        With the batch's statistics, float32 does not settle the gradient: PyTorch's own float32
        is as far as 5e-3 from its float64. In float32 a single tensor may be 1e-3 off.
        """
        import torch

        reference = comparable(torch_model)
        model, variables = self.from_torch(reference, name, table, flavour)
        labels, totals = np.array([1, 7, 3, 1], np.int32), []
        for train, dtype in modes if variables["batch_stats"] else modes[:1]:
            x = pictures(size, batch=len(labels)).astype(dtype)
            reference.zero_grad()
            reference.train(train).to(getattr(torch, dtype))
            logits = reference(torch.tensor(x).permute(0, 3, 1, 2))
            torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long()).backward()
            expected = {k: tensor.grad.numpy() for k, tensor in reference.named_parameters()}
            shapes = {"params": variables["params"]}
            expected = flatten(merge(expected, table, shapes, source="gradients"))
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
        self._settle(name, f"{_library(torch_model, flavour)}: gradient", [size], totals)
