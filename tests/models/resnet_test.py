import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax import models
from bloodjax.models.resnet import NETWORKS, ResNet
from bloodjax.pretrained.merge import flatten, merge
from bloodjax.pretrained.rules.resnet import RULES

# Millions of parameters with a classifier of 1000 classes, as torchvision publishes them.
MILLIONS = {
    "resnet_18": 11.690,
    "resnet_34": 21.798,
    "resnet_50": 25.557,
    "resnet_101": 44.549,
    "resnet_152": 60.193,
}
STAGES = ["layer1", "layer2", "layer3", "layer4"]


def linear(name, flavour=""):
    """A network with a linear head, and the shapes of its variables."""
    model = models.build(name, 10, flavour=flavour, hidden=(), batch_norm=False, dropout=(0.0, 0.0))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return model, {"params": shapes["params"], "batch_stats": shapes["batch_stats"]}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_parameter_counts(name):
    variables = jax.eval_shape(lambda: models.create_model(name)[1])
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count / 1e6 == pytest.approx(MILLIONS[name], abs=0.001)


def test_equals_torchvision(torchvision, parity):
    reference = torchvision.models.resnet18(num_classes=10)
    table = RULES["torchvision"]
    parity.check(reference, "resnet_18", table, STAGES, flavour="torchvision", sizes=(96, 101))


def check_deep(parity, reference, name, source, sizes):
    """As `parity.check`, with the batch's statistics in float64.

    Each BatchNorm over a small batch enlarges what rounding has left: in float32 PyTorch itself is
    6e-4 from its float64 in ResNet-101's last stage.
    """
    import torch

    reference = parity.randomised(reference)
    model, variables = parity.from_torch(reference, name, RULES[source], flavour=source)
    errors = []
    for train, dtype in ((False, "float32"), (True, "float64")):
        reference = reference.to(getattr(torch, dtype))
        # The head's last layer mixes float32 with float64.
        with jax.enable_x64(train), jax.numpy_dtype_promotion("standard"):
            ours = model.clone(backbone=model.backbone.clone(dtype=dtype))
            cast = jax.tree.map(lambda a, dtype=dtype: jnp.asarray(a, dtype), variables)
            for size in sizes:
                x = parity.pictures(size).astype(dtype)
                logits, stages = parity.torch_stages(reference, x, STAGES, train)
                found, found_stages, _ = parity.ours(ours, cast, x, train)
                pairs = zip([*found_stages, found], [*stages, logits], strict=True)
                errors += [parity.worst(a, b) for a, b in pairs]
    print(f"{name} {source}: worst error {max(errors):.1e}")
    assert max(errors) <= 1e-4, errors


def test_bottlenecks_equal_timm(timm, parity):
    check_deep(parity, timm.create_model("resnet50", num_classes=10), "resnet_50", "timm", (65,))


@pytest.mark.slow
@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("source", ["timm", "torchvision"])
def test_every_network_equals_its_source(source, name, parity, request):
    library = request.getfixturevalue(source)
    create = library.create_model if source == "timm" else library.models.get_model
    reference = create(name.replace("_", ""), num_classes=10)
    check_deep(parity, reference, name, source, (224, 96, 101))


def keras_reference(keras, name, size, seed=0):
    """Keras's network with every tensor drawn anew, and its tensors by `layer/variable`."""
    application = getattr(keras.applications, name.replace("resnet_", "ResNet"))
    model = application(
        weights=None, classes=10, classifier_activation=None, input_shape=(size, size, 3)
    )
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in model.layers:
        for weight in layer.weights:
            shape = tuple(weight.shape)
            if weight.name == "kernel":
                value = rng.normal(0.0, (1.4 / np.prod(shape[:-1])) ** 0.5, shape)
            elif weight.name in ("gamma", "moving_variance"):
                value = rng.uniform(0.7, 1.3, shape)
            else:
                value = rng.normal(0.0, 0.1, shape)
            tensors[f"{layer.name}/{weight.name}"] = value.astype(np.float32)
            weight.assign(tensors[f"{layer.name}/{weight.name}"])
    return model, tensors


def check_keras(keras, parity, name, size):
    model, shapes = linear(name, "keras")
    ends = [f"conv{i + 2}_block{depth}_out" for i, depth in enumerate(NETWORKS[name]["depths"])]
    # Keras computes by JAX here, and leans on promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        reference, tensors = keras_reference(keras, name, size)
        outputs = [reference.get_layer(end).output for end in ends]
        reference = keras.Model(reference.input, [*outputs, reference.output])
        x = parity.pictures(size)
        apply = jax.jit(lambda *arguments: reference.stateless_call(*arguments)[0])
        state = [[v.value for v in reference.trainable_variables]]
        state.append([v.value for v in reference.non_trainable_variables])
        expected = jax.device_get(apply(*state, x[..., ::-1]))  # its pictures are BGR
    variables = merge(tensors, RULES["keras"], shapes, source=name)
    logits, stages, _ = parity.ours(model, variables, x)
    errors = [parity.worst(a, b) for a, b in zip([*stages, logits], expected, strict=True)]
    print(f"{name} keras {size}: worst error {max(errors):.1e}")
    assert max(errors) <= 1e-4, errors


def test_equals_keras(keras, parity):
    check_keras(keras, parity, "resnet_50", 101)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet_50", "resnet_101", "resnet_152"])
@pytest.mark.parametrize("size", [224, 96, 101])
def test_every_network_equals_keras(keras, parity, name, size):
    check_keras(keras, parity, name, size)


def cross_entropy(params, model, batch_stats, x, labels, train):
    logits, _ = model.apply(
        {"params": params, "batch_stats": batch_stats},
        x,
        train=train,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


# With the batch's statistics, float32 does not settle the gradient: an activation within rounding
# of 0 passes the gradient in one computation and not in the next, and PyTorch's own float32 is
# as far as 5e-3 from its float64. So that mode is held in float64.
@pytest.mark.parametrize(("train", "dtype"), [(False, "float32"), (True, "float64")])
def test_gradients_equal_torch(torchvision, parity, train, dtype):
    import torch

    reference = parity.randomised(torchvision.models.resnet18(num_classes=10))
    table = RULES["torchvision"]
    model, variables = parity.from_torch(reference, "resnet_18", table, flavour="torchvision")
    x = parity.pictures(49, batch=4).astype(dtype)
    labels = np.array([1, 7, 3, 1], np.int32)
    reference.train(train).to(getattr(torch, dtype))
    logits = reference(torch.tensor(x).permute(0, 3, 1, 2))
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels).long()).backward()
    gradients = {name: tensor.grad.numpy() for name, tensor in reference.named_parameters()}
    gradients = merge(gradients, table, {"params": variables["params"]}, source="gradients")
    expected = flatten({"params": gradients["params"]})

    # The head's last layer mixes float32 with float64.
    with jax.enable_x64(train), jax.numpy_dtype_promotion("standard"):
        model = model.clone(backbone=model.backbone.clone(dtype=dtype))
        params, batch_stats, x = jax.tree.map(
            lambda a: jnp.asarray(a, dtype), (variables["params"], variables["batch_stats"], x)
        )
        gradient = jax.jit(jax.grad(cross_entropy), static_argnums=(1, 5))
        found = flatten({"params": gradient(params, model, batch_stats, x, labels, train)})
    assert set(found) == set(expected)
    assert min(np.abs(tensor).max() for tensor in expected.values()) > 0
    difference = {path: found[path] - expected[path] for path in expected}

    def norm(tensors):
        return np.sqrt(sum(np.sum(np.square(tensor, dtype=np.float64)) for tensor in tensors))

    worst = max(norm([difference[path]]) / norm([expected[path]]) for path in expected)
    total = norm(difference.values()) / norm(expected.values())
    print(f"gradients, train={train}: worst tensor {worst:.1e}, all {total:.1e}")
    assert worst <= 1e-3
    assert total <= 1e-4


def test_a_foreign_table_is_refused():
    from bloodjax.errors import UserError

    _, shapes = linear("resnet_18")
    tensors = {"conv1/kernel": np.zeros((7, 7, 3, 64), np.float32)}
    with pytest.raises(UserError, match=r"1 unexpected \(conv1/kernel\)"):
        merge(tensors, RULES["timm"], shapes, source="here")


@pytest.fixture(scope="module")
def small():
    model = ResNet(depths=(1, 2), widths=(8, 16), bottleneck=False, drop_path=0.5)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_stochastic_depth_only_while_training(small, parity):
    model, variables = small
    x = jnp.tile(parity.pictures(32, batch=1), (64, 1, 1, 1))
    calm = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(calm, jnp.broadcast_to(calm[:1], calm.shape), atol=1e-5)
    train = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    wild = jax.jit(train)(variables, x)
    # The last block is left out half the time, the one before a quarter: four outcomes.
    assert len(np.unique(np.round(wild, 3), axis=0)) == 4


def test_bfloat16_keeps_float32_parameters(small, parity):
    model, variables = small
    half = model.clone(dtype=jnp.bfloat16)
    x = jnp.asarray(parity.pictures(32))
    # Flax's norms mix the two types.
    with jax.numpy_dtype_promotion("standard"):
        drawn = jax.eval_shape(half.init, jax.random.key(0), x)
        found = jax.jit(half.apply)(variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {jnp.dtype("float32")}
    assert found.dtype == jnp.bfloat16
    expected = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.15)
