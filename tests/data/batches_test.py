import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.data.batches import (
    DeviceDataset,
    StackedBatches,
    balanced_order,
    class_quotas,
    epoch_order,
    gather,
    nth,
    sampled_order,
    steps_per_epoch,
)
from bloodjax.errors import UserError


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    orders = {(s, e): np.asarray(epoch_order(s, e, 50)) for s in (0, 1) for e in (0, 1, 2)}
    for (seed, epoch), order in orders.items():
        assert order.dtype == np.int32
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
        np.testing.assert_array_equal(order, epoch_order(seed, epoch, 50))
    assert len({order.tobytes() for order in orders.values()}) == 6


def test_a_balanced_order_shows_classes_and_their_images_equally_often():
    labels = np.repeat(np.arange(3), (4, 40, 6)).astype(np.int32)
    orders = {
        (seed, epoch): np.asarray(balanced_order(seed, epoch, labels, 3, 47))
        for seed in (0, 1)
        for epoch in range(8)
    }
    one_more = set()
    for (seed, epoch), order in orders.items():
        assert order.dtype == np.int32
        shown = np.bincount(labels[order], minlength=3)
        assert sorted(shown) == [15, 16, 16]
        one_more.add(int(shown.argmin()))
        for label, count in enumerate(shown):
            members = np.flatnonzero(labels == label)
            each = np.bincount(order, minlength=len(labels))[members]
            assert each.max() - each.min() <= 1
            assert each.sum() == count
        np.testing.assert_array_equal(order, balanced_order(seed, epoch, labels, 3, 47))
    assert one_more == {0, 1, 2}
    assert len({order.tobytes() for order in orders.values()}) == len(orders)
    # Images of the large class change from epoch to epoch, and classes stand in no pattern.
    seen = np.concatenate([order for (seed, _), order in orders.items() if seed == 0])
    assert len(np.unique(seen)) == len(labels)
    repeats = np.mean([np.mean(np.diff(labels[order]) == 0) for order in orders.values()])
    assert 0.2 < repeats < 0.45


@pytest.mark.parametrize("exponent", [0.5, 0.25, 1.0])
def test_a_sampled_order_shows_classes_by_a_power_of_their_sizes(exponent):
    labels = np.repeat(np.arange(3), (4, 70, 6)).astype(np.int32)
    size, epochs = 64, 40
    arguments = (labels, 3, size, exponent)
    orders = [np.asarray(sampled_order(0, epoch, *arguments)) for epoch in range(epochs)]
    expected = np.array([4, 70, 6]) ** exponent
    expected = size * expected / expected.sum()
    shown = np.array([np.bincount(labels[order], minlength=3) for order in orders])
    assert all(order.dtype == np.int32 and len(order) == size for order in orders)
    # Each epoch's count is the expectation rounded up or down, and their mean is unbiased.
    assert np.abs(shown - expected).max() < 1
    assert np.abs(shown.mean(axis=0) - expected).max() < 0.25
    for order in orders:
        each = np.bincount(order, minlength=len(labels))
        for label in range(3):
            assert np.ptp(each[labels == label]) <= 1
    np.testing.assert_array_equal(orders[3], sampled_order(0, 3, *arguments))
    seeds = [np.asarray(sampled_order(seed, 3, *arguments)) for seed in (0, 1)]
    assert not np.array_equal(*seeds)
    # Every image of the large class is shown in some epoch, and classes are in no pattern.
    assert len(np.unique(np.concatenate(orders))) == len(labels)
    repeats = np.mean([np.mean(np.diff(labels[order]) == 0) for order in orders])
    assert abs(repeats - np.sum((expected / size) ** 2)) < 0.08


def test_a_sampled_order_with_exponent_0_is_balanced():
    labels = np.repeat(np.arange(3), (4, 40, 6)).astype(np.int32)
    np.testing.assert_array_equal(
        sampled_order(5, 2, labels, 3, 47, 0.0), balanced_order(5, 2, labels, 3, 47)
    )


@pytest.mark.parametrize("offset", [0.0, 0.3, 0.999999])
def test_quotas_fill_an_order_with_every_class(offset):
    counts = np.array([13, 3000, 1, 500])
    quotas = class_quotas(counts, 3500, 0.5, offset)
    assert quotas.sum() == 3500
    expected = 3500 * np.sqrt(counts) / np.sqrt(counts).sum()
    assert np.abs(quotas - expected).max() < 1


def test_whole_batches_in_an_epoch():
    assert [steps_per_epoch(n, 8) for n in (8, 15, 16)] == [1, 1, 2]
    with pytest.raises(UserError, match="batch_size is 8, but the training split has 7 images"):
        steps_per_epoch(7, 8)


def test_gather_takes_what_stands_next_in_the_order():
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3)).astype(np.uint8)
    labels = np.arange(10, dtype=np.int32) % 3
    order = np.array([9, 2, 7, 0, 1, 3, 4, 8, 6, 5], np.int32)
    weights = np.linspace(0, 1, 10, dtype=np.float32)
    data = jax.device_put(DeviceDataset.of(images, labels, weights=weights))
    batch = gather(data, jnp.asarray(order), jnp.int32(2), 3)
    np.testing.assert_array_equal(batch.weight, weights[[7, 0, 1]])
    np.testing.assert_array_equal(batch.image, images[[7, 0, 1]])
    np.testing.assert_array_equal(batch.label, labels[[7, 0, 1]])
    np.testing.assert_array_equal(batch.mask, [True] * 3)


@pytest.mark.parametrize("shape", [(4, 4, 3), (32, 32, 3), (33, 33, 3), (8, 1000), (1, 7)])
def test_an_image_fills_whole_tiles_and_comes_back_in_its_shape(shape):
    dtype = np.uint8 if len(shape) == 3 else np.float32
    values = np.random.default_rng(0).integers(0, 256, (5, *shape)).astype(dtype)
    labels = np.arange(5, dtype=np.int32)
    for data in (DeviceDataset.of(values, labels), jax.jit(DeviceDataset.of)(values, labels)):
        assert data.rows.dtype == dtype
        assert data.rows.shape[:2] == (5, 8)
        assert data.rows.shape[2] == -(-np.prod(shape) // 1024) * 128
        taken = jax.jit(DeviceDataset.take)(data, jnp.array([4, 0, 4], jnp.int32))
        assert taken.dtype == dtype
        np.testing.assert_array_equal(taken, values[[4, 0, 4]])


def test_a_dataset_of_host_arrays_stays_on_the_host():
    images = np.zeros((3, 32, 32, 3), np.uint8)
    data = DeviceDataset.of(images, np.arange(3, dtype=np.int32))
    assert type(data.rows) is np.ndarray
    assert np.shares_memory(data.rows, images)


def test_nth_takes_a_step_s_batch_of_those_handed_in():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 4, 3)).astype(np.uint8)
    labels = np.arange(6, dtype=np.int32).reshape(2, 3)
    for i in (0, 1):
        weights = jnp.asarray(labels, jnp.float32)
        batch = nth(StackedBatches(jnp.asarray(images), jnp.asarray(labels), None, weights), i)
        np.testing.assert_array_equal(batch.weight, labels[i])
        np.testing.assert_array_equal(batch.image, images[i])
        np.testing.assert_array_equal(batch.label, labels[i])
        np.testing.assert_array_equal(batch.mask, [True] * 3)
