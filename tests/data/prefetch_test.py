import itertools
import threading
import time

import numpy as np
import pytest

from bloodjax.data import prefetch

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3)).astype(np.uint8)
LABELS = np.arange(20, dtype=np.int32) % 3
# Two steps of three images a call, and a last call of one step.
CALLS = np.array_split(np.random.default_rng(1).permutation(20)[:15].astype(np.int32), 5)
CALLS = [np.stack(CALLS[:2]), np.stack(CALLS[2:4]), CALLS[4][None]]


def readers():
    return {t for t in threading.enumerate() if t.name.startswith("grain")}


def ended(threads):
    """Whether the threads are gone, or soon are."""
    deadline = time.monotonic() + 10
    while readers() & threads and time.monotonic() < deadline:
        time.sleep(0.01)
    return not readers() & threads


def test_each_call_takes_its_images_in_order():
    weights = np.arange(20, dtype=np.float32)
    placed = list(prefetch.prefetch(IMAGES, LABELS, CALLS, lambda data: data, None, weights))
    assert len(placed) == 3
    for data, index in zip(placed, CALLS, strict=True):
        assert (data.images.dtype, data.labels.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(data.images, IMAGES[index])
        np.testing.assert_array_equal(data.labels, LABELS[index])
        np.testing.assert_array_equal(data.weights, weights[index])


def test_images_may_lie_in_a_file(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    placed = list(prefetch.prefetch(mapped, LABELS, CALLS, lambda data: data))
    np.testing.assert_array_equal(placed[1].images, IMAGES[CALLS[1]])


def test_it_reads_two_calls_ahead_and_no_more():
    placed = []

    def place(data):
        placed.append(threading.current_thread())
        return data

    calls = prefetch.prefetch(IMAGES, LABELS, CALLS * 4, place)
    for taken in (1, 2, 3):
        next(calls)
        deadline = time.monotonic() + 10
        while len(placed) < taken + 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert len(placed) == taken + 2
    assert threading.main_thread() not in placed
    calls.close()


def test_closing_it_ends_its_threads():
    before = readers()
    calls = prefetch.prefetch(IMAGES, LABELS, CALLS * 100, lambda data: data)
    next(calls)
    started = readers() - before
    assert started
    calls.close()
    assert ended(started)


def test_a_reader_s_exception_arrives_as_it_is():
    before = readers()
    gone = OSError("the disk is gone")
    counter = itertools.count()

    def place(data):
        if next(counter) == 1:
            raise gone
        return data

    calls = prefetch.prefetch(IMAGES, LABELS, CALLS[:2], place)
    with pytest.raises(OSError, match="the disk is gone") as raised:
        list(calls)
    assert raised.value is gone
    assert ended(readers() - before)
