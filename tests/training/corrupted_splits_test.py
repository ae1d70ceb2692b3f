import dataclasses
import pathlib

import numpy as np
import pytest

from bloodjax.corruptions import registry
from bloodjax.data.lazy import LazyImages
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.training import corrupted_splits
from bloodjax.training.input_pipeline import Parts


@pytest.fixture(scope="module")
def parts():
    cells = render.render(48, 32, seed=1)
    return Parts(
        cells.take(np.arange(24)), cells.take(np.arange(24, 36)), cells.take(np.arange(36, 48))
    )


def test_without_a_wish_nothing_changes(parts, make_config):
    assert corrupted_splits.with_distorted(make_config(), parts) is parts


def test_validation_and_test_get_twins_and_train_none(parts, make_config):
    config = make_config(**{"data.validation_distortion": "defocus_blur:3"})
    both = corrupted_splits.with_distorted(config, parts)
    assert both.train is parts.train
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


def test_a_part_that_is_not_there_has_no_twin(parts, make_config):
    config = make_config(**{"data.validation_distortion": "all"})
    both = corrupted_splits.with_distorted(config, dataclasses.replace(parts, test=None))
    assert list(both.evaluated("test", "validation")) == ["validation", "validation_distorted"]


def test_a_picture_s_distortion_does_not_depend_on_its_neighbours(parts):
    choice = registry.parse("everything", "x")
    whole = corrupted_splits.distorted(parts.test, choice, 0)
    some = corrupted_splits.distorted(parts.test.take(np.array([7, 2])), choice, 0)
    np.testing.assert_array_equal(some, whole[[7, 2]])
    assert (corrupted_splits.distorted(parts.test, choice, 1) != whole).any()


def test_the_twin_of_an_unread_part_lies_in_a_file_without_a_name(parts, tmp_path):
    choice = registry.parse("everything", "x")
    pixels = parts.test.images
    unread = LazyImages(lambda places: pixels[places], np.arange(12), 32)
    test = dataclasses.replace(parts.test, images=unread)
    found = corrupted_splits.distorted(test, choice, 0, folder=tmp_path)
    assert isinstance(found, np.memmap)
    assert [*tmp_path.iterdir()] == []
    np.testing.assert_array_equal(found, corrupted_splits.distorted(parts.test, choice, 0))


def test_a_disk_without_room_for_a_twin_is_one_line(parts, tmp_path, monkeypatch):
    unread = LazyImages(lambda places: parts.test.images[places], np.arange(12), 32)
    test = dataclasses.replace(parts.test, images=unread)
    full = pathlib.Path("/dev/full")
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: full.open("r+b"))
    with pytest.raises(UserError, match="No space left on device, expected room for 36,864 bytes"):
        corrupted_splits.distorted(test, {"dust": (1,)}, 0, folder=tmp_path)
