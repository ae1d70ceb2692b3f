import numpy as np
import pytest

from bloodjax.data import lazy
from bloodjax.data.dataset import Dataset, unlabelled
from bloodjax.data.reading import LeftOut, Reading

FIELDS = {
    "images": np.arange(3, dtype=np.uint8)[:, None, None, None] + np.zeros((3, 4, 4, 3), np.uint8),
    "labels": np.array([0, 1, 0], np.int32),
    "names": ("a", "b", "c"),
    "classes": ("x", "y"),
    "splits": ("train", "", "val"),
    "groups": ("", "p", "q"),
}


def test_take_keeps_the_order_asked_for():
    taken = Dataset(**FIELDS).take(np.array([2, 0]))
    assert taken.images[:, 0, 0, 0].tolist() == [2, 0]
    assert taken.labels.tolist() == [0, 0]
    assert (taken.names, taken.splits, taken.groups) == (("c", "a"), ("val", "train"), ("q", ""))
    assert taken.classes == ("x", "y")


def test_take_accepts_a_mask():
    assert Dataset(**FIELDS).take(np.array([False, True, True])).names == ("b", "c")


def test_unreadable_images_are_counted_by_class():
    found = Dataset(**FIELDS).only_readable(np.array([False, True, False]))
    assert (found.names, found.reading.left_out) == (("b",), (LeftOut("unreadable", "x", 2),))
    several = FIELDS | {"labels": np.array([[1, 1], [0, 1], [0, 0]], np.int32)}
    found = Dataset(**several).only_readable(np.array([False, True, True]))
    assert found.reading.left_out == (LeftOut("unreadable", "x;y", 1),)
    images = unlabelled(FIELDS["images"], FIELDS["names"], Reading("cells"))
    assert images.only_readable(np.ones(3, bool)) is images
    found = images.only_readable(np.array([True, False, True]))
    assert (found.names, found.groups, found.splits) == (("a", "c"), ("", ""), ("", ""))
    assert found.reading.left_out == (LeftOut("unreadable", "", 1),)


@pytest.mark.parametrize("field", ["names", "splits", "groups"])
def test_fields_of_different_length_are_a_bug(field):
    with pytest.raises(ValueError, match=f"{field} has 2 entries for 3 images"):
        Dataset(**FIELDS | {field: FIELDS[field][:2]})


def test_lazy_images_stay_lazy_when_taken():
    def load(places):
        asked.append(places.tolist())
        return FIELDS["images"][places]

    asked = []
    lazy_images = lazy.LazyImages(load, np.arange(3), 4)
    taken = Dataset(**FIELDS | {"images": lazy_images}).take(np.array([True, False, True]))
    assert (asked, taken.names) == ([], ("a", "c"))
    assert taken.images[:][:, 0, 0, 0].tolist() == [0, 2]
    assert asked == [[0, 2]]


def test_joined_is_one_after_the_other():
    dataset = Dataset(**FIELDS)
    joined = dataset.take(np.array([2])).concatenate(dataset.take(np.array([0, 1])))
    assert joined.images[:, 0, 0, 0].tolist() == [2, 0, 1]
    assert joined.labels.tolist() == [0, 0, 1]
    assert (joined.names, joined.splits) == (("c", "a", "b"), ("val", "train", ""))
    assert (joined.groups, joined.classes) == (("q", "", "p"), ("x", "y"))


def test_images_keep_how_they_were_read():
    reading = Reading("cells", "class folders")
    dataset = Dataset(**FIELDS, reading=reading)
    taken = dataset.take(np.array([0]))
    assert taken.reading == taken.concatenate(dataset).reading == reading
    assert Dataset(**FIELDS).reading == Reading()
