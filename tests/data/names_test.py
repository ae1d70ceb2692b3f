import unicodedata

import pytest

from bloodjax.data import names

NFD = unicodedata.normalize("NFD", "érythroblaste")


@pytest.mark.parametrize("name", [NFD, "Érythroblaste", " érythroblaste ", "\ufefférythroblaste"])
def test_names_that_differ_in_form_are_matched(name):
    assert names.form(name) == names.form("érythroblaste")
    assert names.match([name], ["monocyte", "érythroblaste"]) == {name: "érythroblaste"}


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
