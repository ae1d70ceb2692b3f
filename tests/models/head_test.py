import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from bloodjax import models
from bloodjax.models.head import FREEZE, Freeze, Head, Network, parse_freeze
from bloodjax.models.layer_depth import stages
from bloodjax.models.simple_cnn import SimpleCNN

from ..trees import assert_trees_equal

MODEL = Network(SimpleCNN(depths=(1,), widths=(4,)), Head(3, hidden=(5,), dropout=(0.2, 0.2)))


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).normal(size=(8, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope="module")
def variables(images):
    return jax.jit(MODEL.init)(jax.random.key(0), images)


@pytest.fixture(scope="module", params=FREEZE)
def trained(request, variables, images):
    """The mode, the gradients under it, and the statistics after it."""

    def loss(params):
        logits, updated = MODEL.apply(
            {**variables, "params": params},
            images,
            train=True,
            freeze=request.param,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return jnp.sum(logits**2), updated["batch_stats"]

    gradients, statistics = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    return request.param, gradients, statistics


def any_nonzero(tree):
    return jax.tree.map(lambda leaf: bool(np.any(leaf != 0)), tree)


def test_the_founding_reports_head():
    head = Head(8)
    variables = jax.eval_shape(
        lambda x: head.init(jax.random.key(0), x, False, False), jnp.zeros((1, 1024))
    )
    assert {
        name: {key: leaf.shape for key, leaf in layer.items()}
        for name, layer in variables["params"].items()
    } == {
        "norm": {"scale": (1024,), "bias": (1024,)},
        "dense_0": {"kernel": (1024, 512), "bias": (512,)},
        "dense_1": {"kernel": (512, 256), "bias": (256,)},
        "dense_2": {"kernel": (256, 128), "bias": (128,)},
        "dense_3": {"kernel": (128, 64), "bias": (64,)},
        "logits": {"kernel": (64, 8), "bias": (8,)},
    }


def test_a_linear_head_is_one_matrix_product():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 6)), jnp.float32)
    head = Head(3, hidden=(), batch_norm=False)
    variables = head.init(jax.random.key(0), x, False, False)
    assert list(variables) == ["params"]
    layer = variables["params"]["logits"]
    found = head.apply(variables, x, False, False)
    np.testing.assert_allclose(found, x @ layer["kernel"] + layer["bias"][None], rtol=1e-5)


def test_both_dropouts_are_on_only_while_training():
    x = jnp.ones((4, 50))
    for rates in ((0.5, 0.0), (0.0, 0.5)):
        head = Head(3, hidden=(20,), batch_norm=False, dropout=rates)
        variables = head.init(jax.random.key(0), x, False, False)
        calm = head.apply(variables, x, False, False)
        wild = head.apply(variables, x, True, False, rngs={"dropout": jax.random.key(1)})
        np.testing.assert_allclose(calm, jnp.broadcast_to(calm[:1], calm.shape), rtol=1e-5)
        assert len(np.unique(np.asarray(wild), axis=0)) == 4


def test_bfloat16_gives_float32_logits(images):
    dtype = jnp.bfloat16
    model = Network(
        SimpleCNN(depths=(1,), widths=(4,), dtype=dtype), Head(3, hidden=(5,), dtype=dtype)
    )
    with jax.numpy_dtype_promotion("standard"):  # Flax's norms mix the two types
        shapes = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), images)
    assert shapes[0].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes[1])} == {jnp.dtype("float32")}


@pytest.mark.full
def test_a_frozen_backbone_alone_gets_no_gradient(trained):
    freeze, gradients, _ = trained
    assert set(jax.tree.leaves(any_nonzero(gradients["head"]["logits"]))) == {True}
    assert set(jax.tree.leaves(any_nonzero(gradients["backbone"]))) == {freeze != "backbone"}


def test_which_statistics_change(trained, variables):
    freeze, _, statistics = trained
    changed = any_nonzero(jax.tree.map(jnp.subtract, statistics, variables["batch_stats"]))
    assert set(jax.tree.leaves(changed["backbone"])) == {freeze == "none"}
    assert set(jax.tree.leaves(changed["head"])) == {freeze != "batchnorm"}


def test_an_unknown_freeze(variables, images):
    with pytest.raises(ValueError, match=r"freeze is 'all', expected one of .*batchnorm"):
        MODEL.apply(variables, images, freeze="all")


def test_a_network_is_its_features_classified(variables, images):
    features = MODEL.apply(variables, images, method="features")
    assert features.shape == (8, 4)
    logits = MODEL.apply(variables, features, method="classify")
    np.testing.assert_allclose(logits, MODEL.apply(variables, images), rtol=1e-6)
    training = {"train": True, "freeze": "backbone", "mutable": ["batch_stats"]}
    rngs = {"dropout": jax.random.key(3)}
    expected, stats = MODEL.apply(variables, images, rngs=rngs, **training)
    found, found_stats = MODEL.apply(variables, features, rngs=rngs, method="classify", **training)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert_trees_equal(found_stats, stats)


def test_what_a_text_freezes():
    assert parse_freeze("stages:2") == Freeze(stages=2)
    assert parse_freeze("stages:12+batchnorm") == Freeze(norms=True, stages=12)
    for text in ("stages:0", "stages", "stages:2+backbone", "head", ""):
        with pytest.raises(ValueError, match="freeze is"):
            parse_freeze(text)


def test_a_network_that_freezes_no_stages_is_not_trained_as_if_it_did(variables, images):
    with pytest.raises(ValueError, match="the backbone freezes 0 stages"):
        MODEL.apply(variables, images, train=True, freeze="stages:1", mutable=["batch_stats"])
    assert MODEL.freezing("batchnorm") is MODEL
    with pytest.raises(ValueError, match="freeze is 'stages:99', but the backbone has 1 stages"):
        MODEL.freezing("stages:99")


@pytest.mark.parametrize(
    ("name", "side"), [("vgg11_bn", 31), ("convnext_atto", 31), ("inception_v3", 74)]
)
def test_images_that_are_too_small_give_no_nan(name, side):
    model = models.architecture(name).linear(2)
    image = jnp.zeros((1, side, side, 3))
    with pytest.raises(ValueError, match=r"a map has 0x0 pixels, expected larger images"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))


# The smallest network of each family.
FAMILIES = (
    "simple_cnn_050",
    *(
        pytest.param(name, marks=pytest.mark.full)
        for name in (
            "convnext_atto",
            "densenet121",
            "efficientnet_lite0",
            "inception_v3",
            "mobilenetv1_025",
            "resnet18",
            "vgg11_bn",
        )
    ),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_stages_have_neither_gradients_nor_new_statistics(name):
    model = models.linear(name, 3).freezing("stages:2")
    image = jax.ShapeDtypeStruct((2, 80, 80, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    params, stats = variables["params"], variables.get("batch_stats", {})

    def loss(params, stats, image):
        logits, updated = model.apply(
            {"params": params, "batch_stats": stats},
            image,
            train=True,
            freeze="stages:2",
            mutable=["batch_stats"],
        )
        return logits.sum(), updated.get("batch_stats", {})

    # What a frozen stage gives is known when it is traced: zeros, and the statistics that went in.
    jaxpr = jax.make_jaxpr(jax.grad(loss, has_aux=True))(params, stats, image).jaxpr
    made = {var: equation for equation in jaxpr.eqns for var in equation.outvars}
    number = len(jax.tree.leaves(params))
    for stage, out in zip(jax.tree.leaves(stages(params)), jaxpr.outvars[:number], strict=True):
        made_by = made[out]
        is_zero = made_by.primitive.name == "broadcast_in_dim" and not any(
            isinstance(var, type(out)) for var in made_by.invars
        )
        assert is_zero == (stage < 2)
    ins = jaxpr.invars[number:-1]
    # A layer of the statistics is a layer of the parameters.
    places = dict(flatten_dict(stages(params)).items())
    for path, before, after in zip(flatten_dict(stats), ins, jaxpr.outvars[number:], strict=True):
        stage = next(s for known, s in places.items() if known[:-1] == path[:-1])
        assert (before is after) == (stage < 2)
