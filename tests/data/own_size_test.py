import numpy as np
import pytest

from bloodjax.data import images as images_lib
from bloodjax.data import own_size, sources
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError

SIZE = 16


def _cell(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def _read(path, **options):
    options = ReadOptions(**options)
    dataset = sources.load_images(str(path), SIZE, options=options)
    read = own_size.reader(str(path), dataset, options)
    return dataset, [read(i) for i in range(len(dataset))]


def test_images_of_a_folder_have_their_own_sizes(tmp_path):
    cells = {"a/1.png": _cell(20, 30), "b.png": _cell(9, 8, 1)}
    for name, cell in cells.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(images_lib.encode_png(cell))
    (tmp_path / "broken.png").write_bytes(b"no image")
    dataset, found = _read(tmp_path, bad_images="skip")
    assert dataset.names == tuple(cells)
    for image, cell in zip(found, cells.values(), strict=True):
        np.testing.assert_array_equal(image, cell)


def test_one_image(tmp_path):
    (tmp_path / "one.png").write_bytes(images_lib.encode_png(_cell(20, 30)))
    np.testing.assert_array_equal(_read(tmp_path / "one.png")[1][0], _cell(20, 30))


def test_an_npz_with_images_that_are_no_squares(tmp_path):
    images = np.stack([_cell(20, 30, i) for i in range(3)])
    np.savez(tmp_path / "x.npz", images=images)
    np.testing.assert_array_equal(_read(tmp_path / "x.npz")[1], images)
    first, second = images[:2], images[2:, :10]
    np.savez(tmp_path / "y.npz", train_images=first, test_images=second)
    dataset, found = _read(tmp_path / "y.npz")
    assert dataset.names == ("train/0", "train/1", "test/0")
    for image, stored in zip(found, [*first, *second], strict=True):
        np.testing.assert_array_equal(image, stored)


def test_rendered_cells_have_the_size_of_the_network():
    dataset, found = _read("synthetic:8")
    np.testing.assert_array_equal(found, dataset.images)


def test_an_image_that_has_changed_is_one_line(tmp_path):
    path = tmp_path / "one.png"
    path.write_bytes(images_lib.encode_png(_cell(20, 30)))
    dataset = sources.load_images(str(path), SIZE)
    path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"one\.png is no longer a readable image"):
        own_size.reader(str(path), dataset)(0)
