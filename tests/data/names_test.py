import unicodedata

import pytest

from bloodjax.data import names

NFD = unicodedata.normalize("NFD", "érythroblaste")


@pytest.mark.parametrize("name", [NFD, "Érythroblaste", " érythroblaste ", "\ufefférythroblaste"])
def test_names_that_differ_in_form_are_matched(name):
    assert names.form(name) == names.form("érythroblaste")
    assert names.match([name], ["monocyte", "érythroblaste"]) == {name: "érythroblaste"}


def test_paths_have_the_forms_of_their_parts():
    assert names.path_form(f"A /{NFD}.png") == names.path_form("a/Érythroblaste.PNG")
    assert names.path_form("a/b") != names.path_form("ab")


def test_other_names_are_not_matched():
    assert names.match(["blast", "erythroblaste"], ["blasts", "érythroblaste"]) == {}


def test_an_equal_name_comes_before_one_of_the_same_form():
    assert names.match(["A", "a"], ["a", "A"]) == {"A": "A", "a": "a"}
    assert names.match(["ä"], ["Ä", unicodedata.normalize("NFD", "Ä")]) == {}


def test_a_name_of_blanks_stays():
    assert names.tidy(" ") == " "


def test_whole_numbers_are_in_the_order_of_their_values():
    assert names.in_order(["10", "2", "-1", "b", "0", "a10", "02"]) == (
        *("-1", "0", "02", "2", "10"),
        *("a10", "b"),
    )
    assert names.in_order(["9" * 400, "1"])[0] == "1"


def test_the_number_that_a_name_states():
    assert [names.number(n) for n in ("3", "007", "class_12", "T3", "", "3.0")] == [
        *(3, 7, 12),
        *(None, None, None),
    ]
    assert names.numbered(3) == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize("turned", [False, True])
def test_the_most_frequent_name_of_a_form_stands_for_all(turned):
    items = [("b cell", 1), ("B cell", 2), ("A", 1), ("a", 1), ("c", 3)]
    counts = dict(reversed(items) if turned else items)
    found = names.most_frequent(counts)
    assert found == {"b cell": "B cell", "B cell": "B cell", "A": "A", "a": "A", "c": "c"}
    facts = {"a taken as A", "b cell taken as B cell"}
    assert set(names.taken_as(found)) == facts


def test_a_message_lists_the_first_names():
    assert names.shown(("a", "b")) == "a, b"
    assert names.shown([str(i) for i in range(13)]) == f"{', '.join(map(str, range(12)))}, ..."
    assert names.shown("abc", 2) == "a, b, ..."
