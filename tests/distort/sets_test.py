import dataclasses

import numpy as np
import pytest

from bloodjax.data import synthetic
from bloodjax.data.parts import Parts
from bloodjax.distort import corruptions, sets


@pytest.fixture(scope="module")
def parts():
    cells = synthetic.render(48, 32, seed=1)
    return Parts(
        cells.take(np.arange(24)), cells.take(np.arange(24, 36)), cells.take(np.arange(36, 48))
    )


def test_without_a_wish_nothing_changes(parts, make_config):
    assert sets.with_distorted(make_config(), parts) is parts


def test_validation_and_test_get_twins_and_train_none(parts, make_config):
    config = make_config(**{"data.validation_distortion": "defocus_blur:3"})
    both = sets.with_distorted(config, parts)
    assert both.train is parts.train
    assert [name for name, _ in both.items()] == ["train", "validation", "test"]
    expected = ["test", "test_distorted", "validation", "validation_distorted"]
    assert list(both.evaluated("test", "validation")) == expected
    for name in ("validation", "test"):
        clean, twin = getattr(both, name), getattr(both, f"{name}_distorted")
        assert twin.names == clean.names
        np.testing.assert_array_equal(twin.labels, clean.labels)
        for image, picture, found in zip(clean.images, clean.names, twin.images, strict=True):
            same = corruptions.distort(image, "defocus_blur", 3, seed=0, picture=picture)
            np.testing.assert_array_equal(found, same)


def test_a_part_that_is_not_there_has_no_twin(parts, make_config):
    config = make_config(**{"data.validation_distortion": "all"})
    both = sets.with_distorted(config, dataclasses.replace(parts, test=None))
    assert list(both.evaluated("test", "validation")) == ["validation", "validation_distorted"]


def test_a_picture_s_distortion_does_not_depend_on_its_neighbours(parts):
    choice = corruptions.parse("everything", "x")
    whole = sets.distorted(parts.test, choice, 0)
    some = sets.distorted(parts.test.take(np.array([7, 2])), choice, 0)
    np.testing.assert_array_equal(some, whole[[7, 2]])
    assert (sets.distorted(parts.test, choice, 1) != whole).any()
