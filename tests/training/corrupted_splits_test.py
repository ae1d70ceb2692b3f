import dataclasses
import pathlib

import numpy as np
import pytest

from bloodjax.corruptions import registry
from bloodjax.data.lazy import LazyImages
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.training import corrupted_splits
from bloodjax.training.input_pipeline import Splits


@pytest.fixture(scope="module")
def splits():
    cells = render.render_dataset(48, 32, seed=1)
    return Splits(
        cells.take(np.arange(24)), cells.take(np.arange(24, 36)), cells.take(np.arange(36, 48))
    )


def test_without_a_wish_nothing_changes(splits, make_config):
    assert corrupted_splits.with_distorted(make_config(), splits) is splits


def test_validation_and_test_get_twins_and_train_none(splits, make_config):
    config = make_config(**{"data.validation_distortion": "defocus_blur:3"})
    both = corrupted_splits.with_distorted(config, splits)
    assert both.train is splits.train
    assert [name for name, _ in both.items()] == ["train", "validation", "test"]
    expected = ["test", "test_distorted", "validation", "validation_distorted"]
    assert list(both.evaluated("test", "validation")) == expected
    for name in ("validation", "test"):
        clean, twin = getattr(both, name), getattr(both, f"{name}_distorted")
        assert twin.names == clean.names
        np.testing.assert_array_equal(twin.labels, clean.labels)
        for image, picture, found in zip(clean.images, clean.names, twin.images, strict=True):
            same = registry.distort(image, "defocus_blur", 3, seed=0, image_name=picture)
            np.testing.assert_array_equal(found, same)


def test_a_part_that_is_not_there_has_no_twin(splits, make_config):
    config = make_config(**{"data.validation_distortion": "all"})
    both = corrupted_splits.with_distorted(config, dataclasses.replace(splits, test=None))
    assert list(both.evaluated("test", "validation")) == ["validation", "validation_distorted"]


def test_a_picture_s_distortion_does_not_depend_on_its_neighbours(splits):
    choice = registry.parse("everything", "x")
    whole = corrupted_splits.distorted(splits.test, choice, 0)
    some = corrupted_splits.distorted(splits.test.take(np.array([7, 2])), choice, 0)
    np.testing.assert_array_equal(some, whole[[7, 2]])
    assert (corrupted_splits.distorted(splits.test, choice, 1) != whole).any()


def test_the_twin_of_an_unread_part_lies_in_a_file_without_a_name(splits, tmp_path):
    choice = registry.parse("everything", "x")
    pixels = splits.test.images
    unread = LazyImages(lambda places: pixels[places], np.arange(12), 32)
    test = dataclasses.replace(splits.test, images=unread)
    found = corrupted_splits.distorted(test, choice, 0, folder=tmp_path)
    assert isinstance(found, np.memmap)
    assert [*tmp_path.iterdir()] == []
    np.testing.assert_array_equal(found, corrupted_splits.distorted(splits.test, choice, 0))


def test_a_disk_without_room_for_a_twin_is_one_line(splits, tmp_path, monkeypatch):
    unread = LazyImages(lambda places: splits.test.images[places], np.arange(12), 32)
    test = dataclasses.replace(splits.test, images=unread)
    full = pathlib.Path("/dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: full.open("r+b"))
    with pytest.raises(UserError, match="No space left on device, expected room for 36,864 bytes"):
        corrupted_splits.distorted(test, {"dust": (1,)}, 0, folder=tmp_path)
