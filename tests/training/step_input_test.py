import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bloodjax.augment import pipeline
from bloodjax.augment.policy import parse
from bloodjax.data.batches import Batch
from bloodjax.models.layers import example_keys
from bloodjax.training.step_input import VIEWS, normalise, prepare_batch, resize

POLICY = parse("d4|brightness(0.9)|mixup(0.4, p=0.5)|cutmix(p=0.5)")
KEY = jax.random.key(3)


def images(n=6, size=8):
    return np.random.default_rng(3).integers(0, 256, (n, size, size, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def batch():
    teacher = np.random.default_rng(4).dirichlet(np.ones(3), 6).astype(np.float32)
    labels = jnp.arange(6, dtype=jnp.int32) % 3
    return Batch(jnp.asarray(images()), labels, jnp.ones(6, bool), teacher=jnp.asarray(teacher))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("size", "several_views"))
def prepare(policy, batch, **options):
    return prepare_batch(policy, KEY, batch, classes=3, **options)


def test_normalise_takes_bytes_to_the_scale_of_the_weights():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    raw = images(2, 4)
    expected = (raw / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalise(jnp.asarray(raw), mean, std), expected, atol=1e-5)


@pytest.mark.full
def test_of_several_views_the_first_is_clean_and_the_second_is_the_only_one_otherwise(batch):
    rest = dataclasses.replace(POLICY, mix=type(POLICY.mix)())
    found = prepare(rest, batch, several_views=True)
    assert found.image.shape == (6, VIEWS, 8, 8, 3)
    keys = example_keys(jax.random.fold_in(KEY, 0), 6, None)
    clean = pipeline.augment(parse("d4"), keys, batch.image)
    np.testing.assert_array_equal(found.image[:, 0], clean)
    alone = prepare(rest, batch).image
    np.testing.assert_allclose(found.image[:, 1], alone, atol=1e-3)
    assert np.abs(found.image[:, 2] - found.image[:, 1]).max() > 10


def neighbours(x):
    return x.reshape(3, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def test_a_label_has_the_part_of_its_images_weight_in_a_mixed_image(batch):
    weights = jnp.arange(6, dtype=jnp.float32)
    policy = parse("mixup(0.4, p=0.5)")
    plain, found = prepare(policy, batch), prepare(policy, batch.replace(weight=weights))
    own = np.take_along_axis(np.asarray(plain.targets), np.asarray(batch.label)[:, None], axis=1)
    assert np.any(own < 1)
    parts = own * weights[:, None], (1 - own) * neighbours(weights)[:, None]
    np.testing.assert_allclose(found.weight, (parts[0] + parts[1])[:, 0], rtol=1e-5)
    labels = np.eye(found.targets.shape[1])[np.asarray(batch.label)]
    for name, each in (("targets", labels), ("teacher", np.asarray(batch.teacher))):
        weighed = np.asarray(getattr(found, name)) * np.asarray(found.weight)[:, None]
        expected = parts[0] * each + parts[1] * neighbours(each)
        np.testing.assert_allclose(weighed, expected, atol=1e-5)
    assert np.isfinite(found.targets).all()


def test_views_and_the_teacher_are_mixed_as_the_targets_are(batch):
    found = prepare(parse("mixup(0.4, p=0.5)"), batch, several_views=True)
    own = np.take_along_axis(np.asarray(found.targets), np.asarray(batch.label)[:, None], axis=1)
    assert np.any(own < 1)
    teacher, raw = np.asarray(batch.teacher), np.asarray(batch.image, np.float32)
    np.testing.assert_allclose(found.teacher, own * teacher + (1 - own) * neighbours(teacher), 1e-5)
    share = own[:, :, None, None]
    mixed = share * raw + (1 - share) * neighbours(raw)
    for view in range(VIEWS):  # without operations all are the same
        np.testing.assert_allclose(found.image[:, view], mixed, atol=1e-3)


@pytest.mark.parametrize(("size", "new"), [(24, 16), (24, 17), (96, 64)])
def test_a_smaller_image_is_pillow_s(size, new):
    raw = 64 + images(2, size) // 2  # Pillow would clip values after the rows
    raw[1] = np.linspace(0, 255, size).astype(np.uint8)[None, :, None]
    found = np.asarray(resize(jnp.asarray(raw), new))
    bicubic = Image.Resampling.BICUBIC
    expected = [Image.fromarray(one).resize((new, new), bicubic) for one in raw]
    # Pillow rounds after the rows as well.
    np.testing.assert_allclose(found.astype(int), np.stack(expected), atol=1)


def test_a_size_comes_before_augmentation(batch):
    small = prepare(parse("d4"), batch, size=4).image
    expected = prepare(parse("d4"), batch.replace(image=resize(batch.image, 4))).image
    assert small.dtype == jnp.uint8
    np.testing.assert_array_equal(small, expected)
