"""The reference implementations, and how a network is held against one of them."""

import functools
import os

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")


@functools.cache
def _torchvision():
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    pytest.importorskip("importlib.util").find_spec("torchvision") or pytest.skip(
        "needs the extra [parity]"
    )
    # PyTorch's CPU build lacks torchvision's compiled operators. The networks need none of them;
    # the import needs their names.
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        if not torch._C._dispatch_has_kernel(f"torchvision::{name}"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    return torchvision, library  # the library's definitions live as long as it does


@pytest.fixture(scope="session")
def torchvision():
    return _torchvision()[0]


@pytest.fixture(scope="session")
def timm():
    _torchvision()
    return pytest.importorskip("timm", reason="needs the extra [parity]")


@pytest.fixture(scope="session")
def keras():
    return pytest.importorskip("keras", reason="needs the extra [parity]")


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
                fan_in = tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * (1.4 / fan_in) ** 0.5)
            elif name.endswith(("weight", "gamma")):
                tensor.copy_(0.7 + 0.6 * torch.rand(tensor.shape, generator=generator))
            else:
                tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model


def worst(ours, theirs):
    """The largest error relative to the reference's largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs)))


def pictures(size, batch=2, seed=1):
    """Normalised random NHWC pictures."""
    return np.random.default_rng(seed).normal(size=(batch, size, size, 3)).astype(np.float32)


def ours(model, variables, x, train_stats=False):
    """Our logits, stages (in order) and, with `train_stats`, the updated running statistics.

    With `train_stats` BatchNorm uses the batch's statistics; dropout must be 0 in the model.
    """

    @functools.partial(jax.jit, static_argnums=2)
    def apply(variables, x, train):
        return model.apply(
            variables,
            x,
            train=train,
            mutable=["intermediates", "batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )

    logits, updated = apply(variables, jnp.asarray(x), train_stats)
    stages = flax.traverse_util.flatten_dict(updated["intermediates"], sep="/")
    ordered = [stages[k][0] for k in sorted(stages, key=lambda k: int(k.rsplit("_", 1)[1]))]
    return logits, ordered, updated.get("batch_stats", {})


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


class Parity:
    """The helpers of this file, for tests that are modules of their own."""

    randomised = staticmethod(randomised)
    worst = staticmethod(worst)
    pictures = staticmethod(pictures)
    ours = staticmethod(ours)
    torch_stages = staticmethod(torch_stages)

    @staticmethod
    def from_torch(torch_model, name, table, num_classes=10, flavour="timm"):
        """Our network of `name`, with a linear head, and the torch model's weights in it."""
        from bloodjax import models
        from bloodjax.pretrained.merge import merge

        model = models.build(
            name,
            num_classes,
            flavour=flavour,
            top=True,
            hidden=(),
            batch_norm=False,
            dropout=(0.0, 0.0),
        )
        shapes = jax.eval_shape(
            model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        )
        shapes = {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})}
        tensors = {k: v.numpy() for k, v in torch_model.state_dict().items()}
        return model, merge(tensors, table, shapes, source=name)

    def check(self, torch_model, name, table, modules, *, flavour="timm", sizes=(224, 96, 101)):
        """Logits and stages at every size, with running and with the batch's statistics.

        Returns the worst error seen, which is at most 1e-4.
        """
        errors = []
        for size in sizes:
            for train in (False, True):
                torch_model = randomised(torch_model)
                model, variables = self.from_torch(torch_model, name, table, flavour=flavour)
                x = pictures(size)
                logits, stages = torch_stages(torch_model, x, modules, train)
                our_logits, our_stages, _ = ours(model, variables, x, train)
                assert len(our_stages) == len(stages)
                errors += [worst(a, b) for a, b in zip(our_stages, stages, strict=True)]
                errors.append(worst(our_logits, logits))
        print(f"{name} {flavour}: worst error {max(errors):.1e}")
        assert max(errors) <= 1e-4, errors
        return max(errors)


@pytest.fixture(scope="session")
def parity():
    return Parity()
