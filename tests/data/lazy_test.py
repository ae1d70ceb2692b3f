import itertools
import threading

import numpy as np
import pytest

from bloodjax.data import images, lazy
from bloodjax.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
FILES = [images.encode_png(image) for image in PIXELS]


def refusal(i, error):
    return UserError(f"image {i}: {error}")


def make_lazy(asked=None, files=FILES, size=8):
    def read(places):
        if asked is not None:
            asked.append(list(places))
        return [files[i] for i in places]

    return lazy.decode_lazily(read, len(files), size, refusal)


@pytest.mark.parametrize(
    "index",
    [
        *(3, np.int64(-1), slice(2, 7), slice(18, 99), slice(None), slice(5, 5)),
        np.array([4, 4, 0]),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.arange(20) % 3 == 0,
        [1, 2],
    ],
)
def test_an_index_gives_what_an_array_would(index):
    found = make_lazy()[index]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, PIXELS[index])


def test_it_looks_like_an_array():
    loaded = make_lazy()
    assert (loaded.shape, loaded.dtype, loaded.ndim) == (PIXELS.shape, PIXELS.dtype, 4)
    assert (len(loaded), loaded.nbytes) == (20, PIXELS.nbytes)
    np.testing.assert_array_equal(np.asarray(loaded), PIXELS)


def test_nothing_is_read_before_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(lazy, "AT_ONCE", 6)
    asked = []
    loaded = make_lazy(asked).take(np.arange(20)[::-1]).resized(8)
    assert asked == []
    np.testing.assert_array_equal([*loaded], PIXELS[::-1])
    assert max(map(len, asked)) == 6  # never more at once
    assert [*itertools.chain(*asked)] == [*range(20)][::-1]
    asked.clear()
    np.testing.assert_array_equal(loaded[:], PIXELS[::-1])
    assert max(map(len, asked)) == 6


def test_taken_of_what_was_taken():
    loaded = make_lazy().take(np.array([5, 7, 9])).take(np.array([2, 0]))
    np.testing.assert_array_equal(loaded[:], PIXELS[[9, 5]])
    assert loaded.read_files([1]) == [FILES[5]]


def test_take_leaves_lazy_images_lazy():
    places = np.array([3, 1])
    for loaded in (make_lazy(), PIXELS):
        found = lazy.take(loaded, places)
        assert type(found) is type(loaded)
        np.testing.assert_array_equal(found[:], PIXELS[places])


def test_joined_keeps_the_order():
    loaded = make_lazy()
    one, other = loaded.take(np.array([5, 7])), loaded.take(np.array([1]))
    np.testing.assert_array_equal(lazy.concatenate(one, other)[:], PIXELS[[5, 7, 1]])
    np.testing.assert_array_equal(lazy.concatenate(PIXELS[:2], PIXELS[4:5]), PIXELS[[0, 1, 4]])
    with pytest.raises(ValueError, match="two sources"):
        lazy.concatenate(one, make_lazy())


@pytest.mark.parametrize("loaded", [make_lazy(), PIXELS])
def test_resize_is_that_of_images(loaded):
    np.testing.assert_array_equal(lazy.resize(loaded, 5)[:], images.resize(PIXELS, 5))
    assert lazy.resize(loaded, 8) is loaded


def test_an_image_that_cannot_be_decoded_is_the_caller_s_exception():
    loaded = make_lazy(files=[*FILES, b"no image"]).take(np.arange(21)[::-1])
    assert loaded[1:].shape == (20, 8, 8, 3)
    with pytest.raises(UserError, match="image 20: unknown image format"):
        loaded[:]


def test_in_threads_shares_the_work_out():
    found = np.zeros(40, int)
    threads = set()

    def double(i):
        threads.add(threading.current_thread())
        found[i : i + 2] = 2

    lazy.run_in_threads(double, range(0, 40, 2))
    assert found.tolist() == [2] * 40
    assert threading.main_thread() not in threads
    with pytest.raises(ZeroDivisionError):
        lazy.run_in_threads(lambda i: 1 // (i - 3), range(8))


def test_outgrows_memory(monkeypatch):
    monkeypatch.setattr(lazy, "host_memory", lambda: 400)
    assert [lazy.outgrows_memory(n) for n in (100, 101)] == [False, True]


def test_parts_are_all_images_in_order_each_read_once(monkeypatch):
    monkeypatch.setattr(lazy, "AT_ONCE", 3)
    monkeypatch.setattr(lazy, "_PART_BYTES", 7 * PIXELS[0].nbytes)
    asked = []
    parts = list(lazy.parts(make_lazy(asked)))
    assert [len(part) for part in parts] == [6, 6, 6, 2]
    np.testing.assert_array_equal(np.concatenate(parts), PIXELS)
    assert list(itertools.chain(*asked)) == list(range(20))


def test_an_array_is_one_part_and_no_images_are_an_empty_one():
    (part,) = lazy.parts(PIXELS)
    assert part is PIXELS
    assert [part.shape for part in lazy.parts(make_lazy()[:0])] == [(0, 8, 8, 3)]
    (none,) = lazy.parts(make_lazy().take(np.zeros(0, int)))
    assert none.shape == (0, 8, 8, 3)
