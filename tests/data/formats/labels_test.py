import numpy as np
import pytest

from bloodjax.data.formats import labels
from bloodjax.errors import UserError

NUMBERS = np.array([2, 0, 1, 2, 0])
ABC = ("a", "b", "c")


def read(array, own=None, given=(), default=(), positional=True, first=""):
    return labels.read(
        "x.npz", {"labels": array}, own, given, default, positional=positional, first=first
    )


KINDS = {
    "one-hot": (np.eye(3)[NUMBERS], "one-hot labels"),
    "one-hot bytes": (np.eye(3, dtype=np.uint8)[NUMBERS], "one-hot labels"),
    "one-hot booleans": (np.eye(3, dtype=bool)[NUMBERS], "one-hot labels"),
    "texts": (np.array(ABC)[NUMBERS], "text labels"),
    "bytes": (np.array(ABC)[NUMBERS].astype("S"), "text labels"),
    "texts with blanks": (np.array([" a", "b ", "c"])[NUMBERS], "text labels"),
    "a column of texts": (np.array(ABC)[NUMBERS][:, None], "text labels"),
    "from 1": (NUMBERS + 1, "labels 1 to 3"),
}


@pytest.mark.parametrize(("array", "detail"), KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("where", ["own", "given"])
def test_takes_labels_of_each_kind_that_is_clear(array, detail, where):
    found = read(array, **{where: ABC})
    assert [found.classes[i] for i in found.by_key["labels"]] == ["c", "a", "b", "c", "a"]
    assert found.by_key["labels"].dtype == np.int32
    assert found.details == (detail,)


def test_booleans_are_two_classes():
    found = read(np.array([True, False]))
    assert (found.classes, found.by_key["labels"].tolist()) == (("False", "True"), [1, 0])
    assert read(np.array([True, False]), given=("ill", "well")).classes == ("ill", "well")
    with pytest.raises(UserError, match=r"names no classes, and its labels 0..1 need not be"):
        read(np.array([True, False]), given=("ill", "well"), positional=False)


def test_texts_of_one_form_are_one_class():
    found = read(np.array(["Basophil", "basophil", "10", "9"]))
    assert found.classes == ("9", "10", "Basophil")
    assert found.by_key["labels"].tolist() == [2, 2, 1, 0]
    assert "basophil taken as Basophil" in found.details


@pytest.mark.parametrize("turned", [False, True])
def test_the_most_frequent_spelling_names_a_class_in_any_order(turned):
    texts = np.array(["Basophil", "basophil", "basophil ", "B", "b"])
    found = read(texts[::-1] if turned else texts)
    assert found.classes == ("B", "basophil")
    assert found.details == ("text labels", "Basophil taken as basophil", "b taken as B")


def test_numbers_without_names_are_numbered_classes():
    assert read(NUMBERS).classes == ("class_0", "class_1", "class_2")
    assert read(NUMBERS + 1).classes == ("class_1", "class_2", "class_3")
    assert read(NUMBERS + 1).by_key["labels"].tolist() == NUMBERS.tolist()
    # Every class must have an image, so that this is an error later on.
    assert read(NUMBERS + 2).classes == tuple(f"class_{i}" for i in range(5))
    assert read(np.eye(5)[NUMBERS]).classes == tuple(f"class_{i}" for i in range(5))


NOT_POSITIONS = {
    "whole numbers": (("0", "1", "2"), [2, 0, 1, 2, 0]),
    "whole numbers in another order": (("2", "1", "0"), [0, 2, 1, 0, 2]),
    "numbered classes": (("class_2", "class_0", "class_1"), [0, 1, 2, 0, 1]),
    "more whole numbers": (("-1", "0", "1", "2"), [3, 1, 2, 3, 1]),
}


@pytest.mark.parametrize(("given", "expected"), NOT_POSITIONS.values(), ids=NOT_POSITIONS.keys())
def test_names_that_state_numbers_are_matched_to_them(given, expected):
    found = read(NUMBERS, given=given, positional=False)
    assert (found.classes, found.by_key["labels"].tolist()) == (given, expected)


@pytest.mark.parametrize("given", [ABC, ("ill", "well", "other"), ("1", "2", "3"), ("c", "b", "a")])
def test_numbers_that_may_be_in_another_order_are_an_error(given):
    with pytest.raises(UserError, match="expected an array classes with the names") as caught:
        read(NUMBERS, given=given, positional=False)
    assert str(caught.value).startswith("x.npz: names no classes, and its labels 0..2 need not")
    assert read(NUMBERS, given=given).classes == given
    assert read(NUMBERS, own=ABC, given=given, positional=False).classes == ABC
    assert read(NUMBERS, given=given, default=given, positional=False).classes == given


FROM = {
    "given": {"given": ABC},
    "default": {"given": ABC, "default": ABC, "positional": False},
    "own": {"own": ABC},
    "names that state other numbers": {"given": ("1", "2", "3")},
}


@pytest.mark.parametrize("names", FROM.values(), ids=FROM.keys())
@pytest.mark.parametrize("first", ["0", "1"])
def test_a_source_without_some_classes_is_read_from_the_number_that_training_was(names, first):
    everything, part = NUMBERS + int(first), np.array([1, 2, 2])
    if "default" not in names:
        found = read(everything, **names)
        assert found.by_key["labels"].tolist() == NUMBERS.tolist()
        stated = names.get("given", ("",))[0] == "1" and first == "1"
        assert found.first == ("names" if stated else first)
    expected = [one - int(first) for one in part.tolist()]
    assert read(part, **names, first=first).by_key["labels"].tolist() == expected


def test_names_that_state_numbers_count_more_than_positions():
    found = read(np.array([1, 2]), given=("1", "2", "3"))
    assert (found.by_key["labels"].tolist(), found.first) == ([0, 1], "names")


def test_a_number_that_training_did_not_name_does_not_shift_the_others():
    given = ("1", "2", "3")
    assert read(np.array([3, 2]), given=given, first="names").by_key["labels"].tolist() == [2, 1]
    with pytest.raises(UserError, match="has the label 0, expected one of 1, 2, 3, which are the"):
        read(NUMBERS, given=given, first="names")


def test_a_0_where_training_was_from_1_is_one_line():
    with pytest.raises(UserError, match=r"labels\[1\] is 0, expected 1..3 .*, from 1 on as in"):
        read(NUMBERS, given=ABC, first="1")
    assert read(NUMBERS, own=ABC, first="1").by_key["labels"].tolist() == NUMBERS.tolist()
    one_hot = np.eye(3)[[1, 2]]
    assert read(one_hot, given=ABC, first="1").by_key["labels"].tolist() == [1, 2]


@pytest.mark.parametrize("missing", ["None", "nan", "N/A"])
def test_a_missing_label_is_no_class_unless_it_is_listed(missing):
    texts = np.array(["a", missing, "b"])
    with pytest.raises(UserError, match=rf"labels\[1\] is {missing}, which stands for a missing"):
        read(texts)
    assert read(texts, own=("a", missing, "b")).by_key["labels"].tolist() == [0, 1, 2]
    assert read(texts, given=("a", "b", missing)).classes == tuple(sorted(("a", "b", missing)))


def test_a_name_with_what_joins_labels_is_refused():
    with pytest.raises(UserError, match="a label is called a;b, expected a name without ;"):
        labels.read_several("x.npz", {"labels": np.eye(3)}, None, ("a", "b", "a;b"), ())


BAD = {
    "two labels": (np.ones((2, 3)), r"row 0 has 3 labels; expected one class for each image"),
    "soft labels": (np.full((2, 3), 1 / 3), "row 0 has values other than 0 and 1"),
    "columns": (np.eye(4)[NUMBERS], r"one-hot labels have 4 columns, expected 3 \(a, b, c\)"),
    "an unknown text": (np.array(["a", "d"]), "labels contain d, which classes does not list"),
    "an empty text": (np.array(["a", " "]), r"labels\[1\] is empty"),
    "bytes": (np.array([b"\xff"]), "labels has bytes that are not UTF-8"),
    "above": (NUMBERS + 2, r"labels\[0\] is 4, expected 0..2 \(a, b, c\)"),
    "below": (NUMBERS - 1, r"labels\[1\] is -1, expected an integer of at least 0"),
    "three dimensions": (np.zeros((2, 3, 1)), "expected an integer or a text for each image"),
    "a number": (np.array(3), "expected an integer or a text for each image"),
    "none": (np.zeros(0, int), "labels is empty, expected a label for each image"),
}


@pytest.mark.parametrize(("array", "message"), BAD.values(), ids=BAD.keys())
def test_other_labels_are_one_line(array, message):
    with pytest.raises(UserError, match=message) as caught:
        read(array, own=ABC)
    assert str(caught.value).startswith("x.npz: ")


def test_arrays_of_two_kinds_are_an_error():
    with pytest.raises(UserError, match="labels are numbers and text labels, expected one kind"):
        labels.read(*("x.npz", {"a": NUMBERS, "b": np.array(["a"])}, None, (), ()), positional=True)
