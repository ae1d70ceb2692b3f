import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from bloodjax.augment import pipeline
from bloodjax.augment.ops import OPS, POOLS
from bloodjax.augment.policy import parse

N, SIZE = 16, 32


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    smooth = np.kron(rng.normal((180, 120, 150), (40, 40, 30), (N, 8, 8, 3)), np.ones((1, 4, 4, 1)))
    return np.clip(smooth + rng.normal(0, 5, (N, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)


def keys(seed=0, n=N):
    return jax.random.split(jax.random.key(seed), n)


def run(text, images, seed=0):
    augment = jax.jit(pipeline.augment, static_argnums=0)
    return np.asarray(augment(parse(text), keys(seed, len(images)), jnp.asarray(images)))


@pytest.mark.parametrize("name", OPS)
def test_only_operations_of_full_strength_change_something_at_magnitude_0(images, name):
    found = run(f"{name}(0.0)", images)
    if OPS[name].full == "always full strength":
        assert np.abs(found - images).max() > 5
    else:
        # JPEG is lossy even at its best quality, and a box of random erasing has a minimum area.
        difference = np.abs(found - images)
        limit = {"jpeg": 12.0, "erase": 3.0}
        assert difference.mean() < limit[name] if name in limit else difference.max() < 1.01


@pytest.mark.parametrize("name", OPS)
def test_every_operation_does_something_and_keeps_the_range(images, name):
    found = run(f"choice(('{name}',), 1.0, 1)", images)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 255
    assert np.isfinite(found).all()
    assert name == "identity" or np.abs(found - images).mean() > 0.5


def test_composed_operations_are_pillow_s_in_turn(images):
    found = run("invert|autocontrast|grey(0.0)", images)
    for ours, image in zip(found, images, strict=True):
        expected = ImageOps.autocontrast(ImageOps.invert(Image.fromarray(image)))
        assert np.abs(ours - np.asarray(expected, np.float32)).max() <= 1


def test_a_magnitude_and_a_sign_are_drawn_for_each_image(images):
    found = run("randaugment(1, 0.5, 'brightness')", images)
    signs = set()
    for ours, image in zip(found, images, strict=True):
        for sign in (1, -1):
            expected = ImageEnhance.Brightness(Image.fromarray(image)).enhance(1 + 0.45 * sign)
            if np.abs(ours - np.asarray(expected, np.float32)).max() <= 1:
                signs.add(sign)
                break
        else:
            pytest.fail("neither brighter nor darker")
    assert signs == {1, -1}
    weak = np.abs(run("brightness(0.5)", images).mean((1, 2, 3)) / images.mean((1, 2, 3)) - 1)
    assert weak.max() <= 0.46
    assert len(np.unique(weak.round(3))) > N / 2


def test_a_layer_happens_with_its_probability(images):
    many = np.repeat(images, 16, axis=0)
    changed = (run("invert(p=0.3)", many) != many).any((1, 2, 3)).mean()
    assert abs(changed - 0.3) < 0.1


def test_operations_of_a_pool_are_equally_likely(images):
    layers = parse("trivialaugment").passes[0].layers
    samples = jax.vmap(lambda key: pipeline.sample(layers, key))(keys(1, 4096))
    counts = np.bincount(np.asarray(samples.chosen[:, 0]), minlength=len(POOLS["standard"]))
    expected = 4096 / len(POOLS["standard"])
    assert np.all(np.abs(counts - expected) < 5 * np.sqrt(expected))
    amounts = np.abs(samples.amount)
    assert amounts.min() >= 0
    assert amounts.max() < 1
    assert abs(amounts.mean() - 0.5) < 0.02


POLICY = "d4|randaugment(2, 0.5, 'all')|erase(0.5, p=0.5)"


@pytest.mark.slow
def test_an_image_depends_on_its_own_key_alone(images):
    all_at_once = run(POLICY, images)
    np.testing.assert_array_equal(run(POLICY, images), all_at_once)
    half = jax.jit(pipeline.augment, static_argnums=0)(
        parse(POLICY), keys()[8:], jnp.asarray(images[8:])
    )
    np.testing.assert_allclose(half, all_at_once[8:], atol=1e-3)
    assert np.abs(run(POLICY, images, seed=1) - all_at_once).mean() > 5


def in_forms(text, images, seed=0, **options):
    """The images augmented in each form, by the form's name."""
    # Compiling takes all of the time, and half of it without optimizations.
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    augment = jax.jit(
        pipeline.augment, static_argnums=0, static_argnames="form", compiler_options=quick
    )
    arguments = (parse(text), keys(seed, len(images)), jnp.asarray(images))
    return {form: np.asarray(augment(*arguments, form=form, **options)) for form in pipeline.FORMS}


def assert_equal_forms(found):
    for name, images in found.items():
        different = np.abs(images - found["one by one"]) > 0.02
        # Rounding may change a JPEG coefficient by one step.
        assert different.mean() < 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
def test_an_operation_is_the_same_in_every_form(images, name):
    odd = images[:, :27, :27]
    assert_equal_forms(in_forms(f"choice(('{name}',), 1.0, 1)|{name}(0.7, p=0.3)", odd))


FORM_POLICIES = {
    "robust": "d4|choice('microscope', 0.8, 2)|erase(0.5, p=0.25)",
    "randaugment": "flip|randaugment(2, 0.4)|fill('edge')",
    "laboratory": "d4|choice('laboratory', 0.8, 2)|smear(p=0.5)|random_conv(p=0.2)",
    "deposits": "deposits(1.0, p=0.5)|choice('deposits,impulse_noise,identity', 1.0, 2)",
    "one of all": "choice('all', 1.0, 1)",
    "three of all": "choice('all', 1.0, 3)",
    "seven of all": "choice('all', 0.5, 7)|fill('edge')",
    "always the same": "equalize|turn|jpeg(0.3, p=1.0)|blur",
    "augmix": "noise(0.2)|augmix(2, 2, 0.5, 'all')",
}


# Each compiles for a minute or more.
LONG_POLICIES = ("robust", "randaugment", "laboratory", "three of all", "seven of all", "augmix")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=getattr(pytest.mark, "slow" if name in LONG_POLICIES else "full"))
        for name in FORM_POLICIES
    ],
)
def test_a_policy_is_the_same_in_every_form(images, name):
    for seed in (0, 1):  # in one test, which compiles each form once
        assert_equal_forms(in_forms(FORM_POLICIES[name], images, seed))


def test_the_form_for_tpus_is_the_one_for_cpus(images):
    assert_equal_forms(in_forms(FORM_POLICIES["robust"], images[:, :27, :27]))


def lowered(text, platform, n=64, size=96):
    """StableHLO of a policy for a platform."""
    augment = jax.jit(lambda keys, images: pipeline.augment(parse(text), keys, images))
    images = jax.ShapeDtypeStruct((n, size, size, 3), jnp.uint8)
    traced = augment.trace(jax.eval_shape(lambda: keys(n=n)), images)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def most_gathered(text):
    """Largest number of slices that a gather fetches or a scatter writes."""
    operands = re.findall(r'"stablehlo\.(?:gather|scatter)".*?: \((.*?)\) ->', text, re.DOTALL)
    # After the operand come the indices, whose last axis has the coordinates of a slice.
    indices = [re.findall(r"tensor<([0-9x]*)x[a-z]+[0-9]+>", each)[1] for each in operands]
    return max(int(np.prod([int(n) for n in shape.split("x")[:-1]])) for shape in indices)


@pytest.mark.parametrize("name", ["robust", "laboratory", "randaugment"])
def test_a_tpu_gathers_no_single_pixels(name):
    text = FORM_POLICIES[name]
    assert most_gathered(lowered(text, "cuda")) >= 96 * 96
    # Images and their parameters are fetched, but no pixels and no entries of tables.
    assert most_gathered(lowered(text, "tpu")) <= 3 * 64


def test_spots_are_drawn_without_gathers_on_a_tpu():
    assert most_gathered(lowered(FORM_POLICIES["deposits"], "tpu")) <= 3 * 64


@pytest.mark.full
def test_augmix_stays_between_the_image_and_its_chains(images):
    found = run("augmix(2, 2, 0.5, 'invert')", images)
    either = np.stack([images, 255 - images]).astype(np.float32)
    low, high = either.min(0), either.max(0)
    assert np.all(found >= low - 1)
    assert np.all(found <= high + 1)
    assert not np.array_equal(found, images)
    only_identity = run("augmix(3, 3, 0.5, 'identity')", images)
    np.testing.assert_allclose(only_identity, images, atol=1e-3)


def test_views_alone_keep_bytes(images):
    found = run("d4", images)
    assert found.dtype == np.uint8
    assert not np.array_equal(found, images)
    np.testing.assert_array_equal(run("none", images), images)
