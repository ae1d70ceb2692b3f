import dataclasses

import numpy as np

from bloodjax.data import statement
from bloodjax.data.dataset import Dataset
from bloodjax.data.reading import LeftOut, Reading

CELLS = Reading(
    "cells", "class folders", ("groups.csv: 7 groups",), (LeftOut("unreadable", "b", 2),)
)


def _dataset(labels, reading=CELLS, classes=("a", "b")):
    n = len(labels)
    blank = ("",) * n
    images = np.zeros((n, 2, 2, 3), np.uint8)
    names = tuple(map(str, range(n)))
    return Dataset(images, np.array(labels, np.int32), names, classes, blank, blank, reading)


def test_states_sources_classes_and_what_was_left_out():
    parts = {"train": _dataset([0, 0, 1]), "test": _dataset([1])}
    assert statement.lines(parts, [LeftOut("junk", "a", 1), LeftOut("junk", "b", 3)]) == [
        "data: train, test from cells (class folders; groups.csv: 7 groups)",
        "2 classes by train/test: a 2/0, b 1/1; all 3/1",
        "left out: 2 unreadable (b 2); 4 junk (a 1, b 3)",
    ]


def test_names_each_source():
    parts = {"train": _dataset([0, 1]), "test": _dataset([0], Reading("b.npz", "npz"))}
    first, _, third = statement.lines(parts)
    assert (
        first
        == "data: train from cells (class folders; groups.csv: 7 groups), test from b.npz (npz)"
    )
    assert third == "left out: 2 unreadable (b 2)"


def test_a_part_that_is_called_like_its_source_is_named_once():
    dataset = _dataset([0], Reading("a.zip", "class folders"))
    assert statement.lines({"a.zip": dataset})[0] == "data: a.zip (class folders)"


def test_sources_may_have_different_classes():
    parts = {
        "a": _dataset([0, 1, 1], Reading("a"), ("x", "y")),
        "b": _dataset([0, 1, 2, 2], Reading("b"), ("y", "w", "z")),
    }
    assert statement.lines(parts)[1] == "4 classes by a/b: x 1/0, y 2/1, w 0/1, z 0/2; all 3/4"


def test_names_that_are_numbers_are_told_from_counts():
    parts = {"train": _dataset([0, 1, 1], classes=("2", "10"))}
    assert statement.lines(parts)[1] == "2 classes: 2: 1, 10: 2; all 3"


def test_nothing_left_out_is_said():
    assert statement.lines({"a": _dataset([0], Reading("a"))})[2] == "left out: nothing"


def test_images_without_labels_are_counted():
    dataset = _dataset([0] * 1200, Reading("new", "images"), classes=())
    assert statement.lines({"images": dataset})[:2] == [
        "data: images from new (images)",
        "images: 1,200",
    ]


def test_a_thousand_classes_fit_on_a_line():
    names = tuple(f"class_{i}" for i in range(1000))
    line = statement.lines({"train": _dataset(range(1000), classes=names)})[1]
    assert line.startswith("1000 classes: class_0 1, class_1 1,")
    assert line.endswith("and 800 more; all 1,000")


def test_files_without_a_class_are_counted():
    reading = dataclasses.replace(CELLS, left_out=(LeftOut("system file", "", 3),))
    assert statement.lines({"train": _dataset([0, 1], reading)})[2] == "left out: 3 system file"
