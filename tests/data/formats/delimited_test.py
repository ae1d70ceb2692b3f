import csv

import pytest

from bloodjax.data.formats import delimited

TABLE = "path,label\na.png,é\n"
FORMS = {
    "utf-8": (TABLE.encode(), "UTF-8"),
    "a mark": (TABLE.encode("utf-8-sig"), "UTF-8"),
    "utf-16": (TABLE.encode("utf-16"), "UTF-16"),
    "latin-1": (TABLE.encode("latin-1"), "Windows-1252"),
}


@pytest.mark.parametrize(("content", "encoding"), FORMS.values(), ids=FORMS.keys())
def test_decodes_what_programs_write(content, encoding):
    assert delimited.decode_any(content) == (TABLE, encoding)


def test_only_utf_is_decoded_without_guessing():
    with pytest.raises(UnicodeError):
        delimited.decode(TABLE.encode("latin-1"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_in_the_header(delimiter):
    text = 'path,label\n"a,b;c\t|.png",x\n'.replace(",", "\0")
    text = text.replace("\0", delimiter, 1).replace("\0x", delimiter + "x").replace("\0", ",")
    assert delimited.rows(text) == [["path", "label"], ["a,b;c\t|.png", "x"]]


def test_the_second_row_decides_between_two_delimiters_of_the_header():
    assert delimited.rows("image;cell, type\na.png;x\n") == [
        ["image", "cell, type"],
        ["a.png", "x"],
    ]
    assert delimited.rows("image\na;b.png\n") == [["image"], ["a;b.png"]]
    assert delimited.rows("") == []


def test_a_hint_for_spreadsheets_is_no_row():
    assert delimited.rows("sep=;\na;b\n1;2\n") == [["a", "b"], ["1", "2"]]


def test_an_open_quote_is_an_error_that_names_the_row():
    with pytest.raises(csv.Error, match="row 2"):
        delimited.rows('a,b\n"1,2\n', strict=True)
