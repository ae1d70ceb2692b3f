import io

import numpy as np
import PIL.Image
import pytest

from bloodjax.data.formats.annotations import Annotations
from bloodjax.data.formats.archive import Archive
from bloodjax.data.options import ReadOptions
from bloodjax.data.reading import LeftOut
from bloodjax.errors import UserError

FOUND = Annotations(
    names=("1.png", "2.png", "3.png", "4.png"),
    labels=np.array([1, -1, 0, 1], np.int32),
    classes=("a", "b"),
    splits=("train", "train", "val", ""),
    groups=("p", "q", "", "p"),
    weights=np.array([1, 2, 0.5, 4], np.float32),
    details=("2 groups",),
)
SKIP = ReadOptions(bad_images="skip")


def png(value):
    file = io.BytesIO()
    PIL.Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "png")
    return file.getvalue()


def archive(damaged=()):
    files = {name: b"no image" if name in damaged else png(i) for i, name in enumerate(FOUND.names)}
    return Archive(FOUND.names, frozenset(), files.__getitem__)


def test_images_without_a_label_are_left_out_and_counted():
    dataset = FOUND.labelled().read("cells", "a table", archive(), 8, SKIP)
    assert dataset.images[:, 0, 0, 0].tolist() == [0, 2, 3]
    assert (dataset.labels.tolist(), dataset.weights.tolist()) == ([1, 0, 1], [1, 0.5, 4])
    assert (dataset.splits, dataset.groups) == (("train", "val", ""), ("p", "", "p"))
    reading = dataset.reading
    assert (reading.spec, reading.layout, reading.details) == ("cells", "a table", ("2 groups",))
    assert reading.left_out == (LeftOut("without a label", "", 1),)
    assert FOUND.labelled().labelled().left_out == reading.left_out


def test_unreadable_images_are_left_out_by_class():
    dataset = FOUND.labelled().read("cells", "a table", archive({"3.png", "4.png"}), 8, SKIP)
    assert dataset.names == ("1.png",)
    assert dataset.reading.left_out == (
        LeftOut("without a label", "", 1),
        LeftOut("unreadable", "a", 1),
        LeftOut("unreadable", "b", 1),
    )
    with pytest.raises(UserError, match="cells: contains no readable images"):
        FOUND.read("cells", "a table", archive(FOUND.names), 8, SKIP)


def test_images_to_classify_have_no_classes():
    found = Annotations.without_labels(FOUND.names, FOUND.groups, ())
    dataset = found.read("cells", "a table", archive({"2.png"}), 8, SKIP)
    assert (dataset.classes, dataset.labels.tolist()) == ((), [0, 0, 0])
    assert (dataset.groups, dataset.splits) == (("p", "", "p"), ("", "", ""))
    assert dataset.reading.left_out == (LeftOut("unreadable", "", 1),)


CHANGES = {
    "name": {"names": ("1.png", "2.png", "4.png", "3.png")},
    "label": {"labels": np.array([1, 1, 0, 1], np.int32)},
    "class": {"classes": ("a", "c")},
    "split": {"splits": ("train",) * 4},
    "group": {"groups": ("p",) * 4},
    "weight": {"weights": None},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_the_fingerprint_follows_what_is_known_of_each_image(change):
    fields = {name: getattr(FOUND, name) for name in FOUND.__dataclass_fields__}
    before = FOUND.fingerprint("cells", archive().read)
    assert before == FOUND.fingerprint("cells", archive().read)
    assert before != Annotations(**fields | change).fingerprint("cells", archive().read)
    assert before != FOUND.fingerprint("cells", archive({"1.png"}).read)
