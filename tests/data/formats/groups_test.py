import pathlib
import unicodedata

import pytest

from bloodjax.data.formats import groups
from bloodjax.data.formats.archive import Archive
from bloodjax.errors import UserError

IMAGES = ("a/1.png", "a/2.png", "b/é.png")
GROUPS = {"a/1.png": "p1", "a/2.png": "p2", "b/é.png": "p1"}
TABLE = "name,group\na/1.png,p1\na/2.png,p2\nb/é.png,p1\n"


def read(tables, images=IMAGES, more=()):
    contents = {name: t.encode() if isinstance(t, str) else t for name, t in tables.items()}
    archive = Archive((*images, *more, *contents), frozenset(), contents.__getitem__)
    return groups.read(pathlib.Path("cells"), archive, images)


FORMS = {
    "utf-8 with a mark": TABLE.encode("utf-8-sig"),
    "utf-16": TABLE.encode("utf-16"),
    "utf-16 without a mark": TABLE.encode("utf-16-le"),
    "utf-16 big": TABLE.encode("utf-16-be"),
    "line ends": TABLE.replace("\n", "\r\n"),
    "old line ends": TABLE.replace("\n", "\r"),
    "semicolons": TABLE.replace(",", ";"),
    "tabs": TABLE.replace(",", "\t"),
    "a line for spreadsheets": "sep=;\n" + TABLE.replace(",", ";"),
    "quotes": '"name","group"\n"a/1.png","p1"\n"a/2.png","p2"\n"b/é.png","p1"\n',
    "header": TABLE.replace("name,group", "Name , GROUP"),
    "columns": "group,name\np1,a/1.png\np2,a/2.png\np1,b/é.png\n",
    "empty columns": TABLE.replace("\n", ",,\n"),
    "empty lines": TABLE.replace("\n", "\n\n,\n"),
    "backslashes": TABLE.replace("/", "\\"),
    "dots": TABLE.replace("\na", "\n./a"),
    "blanks": TABLE.replace(",", " , ").replace("\n", " \n"),
    "case": TABLE.replace("a/1.png", "A/1.PNG"),
    "composed": unicodedata.normalize("NFD", TABLE),
    "case of keys": TABLE.replace("é.png,p1", "é.png,P1"),
    "a row twice": TABLE + "a/1.png,p1\n",
    "a row twice, in another case": TABLE + "a/2.png,P2\na/2.png,p2\n",
    "whole numbers as floats": TABLE.replace(",p1", ",1.0").replace(",p2", ",2"),
}


@pytest.mark.parametrize("table", FORMS.values(), ids=FORMS.keys())
def test_reads_tables_as_programs_write_them(table):
    found = read({"groups.csv": table})
    expected = GROUPS
    if table is FORMS["whole numbers as floats"]:
        expected = {image: group.removeprefix("p") for image, group in GROUPS.items()}
    if table is FORMS["case of keys"]:  # of equally frequent spellings, the first when sorted
        expected = {image: group.replace("p1", "P1") for image, group in GROUPS.items()}
    assert found.group_of == expected
    assert found.warnings == ()
    assert found.details[0].startswith("groups.csv: 2 groups")


@pytest.mark.parametrize("name", ["Groups.csv", "groups.CSV", "group.csv", "gruops.csv"])
@pytest.mark.parametrize("folder", ["", "a/"])
def test_a_table_under_another_name_is_taken_and_said(name, folder):
    found = read({folder + name: TABLE})
    assert found.group_of == GROUPS
    assert found.details == (f"{folder}{name} taken as groups.csv: 2 groups",)


@pytest.mark.parametrize(
    "name", ["groups.csv.txt", "groups (1).csv", "groups - Kopie.csv", "patients.csv", "groups"]
)
def test_more_names_of_tables(name):
    assert groups.tables([name, *IMAGES, "labels.csv", "README.md"]) == (name,)


@pytest.mark.parametrize("name", ["slide1", "patient 3", "group2"])
def test_an_image_without_a_suffix_is_no_table(name):
    assert groups.tables([name]) == ()


@pytest.mark.parametrize(
    ("name", "content"), [("groups.xlsx", b"PK\3\4\xff"), ("patients.csv", "")]
)
def test_what_may_have_been_meant_as_a_table_is_named(name, content):
    found = read({name: content})
    assert (found.group_of, found.details) == ({}, ())
    (line,) = found.warnings
    assert line.startswith(f"cells: {name} is not read; a table of groups is called groups.csv")


def test_a_table_in_the_folder_of_a_class_or_split():
    own = read({"a/groups.csv": "name,group\n1.png,p1\n2.png,p2\n"})
    assert own.group_of == {"a/1.png": "p1", "a/2.png": "p2"}
    images = ("train/a/1.png", "val/a/1.png")
    table = "name,group\na/1.png,{}\n"
    found = read(
        {"train/groups.csv": table.format("p1"), "val/groups.csv": table.format("p2")}, images
    )
    assert found.group_of == dict(zip(images, ("p1", "p2"), strict=True))
    assert found.details == ("train/groups.csv, val/groups.csv: 2 groups",)


def test_a_table_outside_the_folder_around_everything():
    images = tuple(f"x/y/{image}" for image in IMAGES)
    contents = {"groups.csv": TABLE.encode()}
    archive = Archive((*images, *contents), frozenset(), contents.__getitem__)
    found = groups.read(pathlib.Path("cells"), archive, images, "x/y/")
    assert found.group_of == {f"x/y/{image}": group for image, group in GROUPS.items()}


def test_images_without_a_group_are_counted():
    table = "name,group\na/1.png,p1\na/2.png,nan\n"
    found = read({"groups.csv": table})
    assert found.group_of == {"a/1.png": "p1"}
    assert found.details == ("groups.csv: 1 group, none for 2 of 3 images",)
    assert found.partly.startswith(
        "cells: groups.csv gives no group to 2 of 3 images; they may be on"
    )


def test_files_that_are_not_used_may_be_listed():
    found = read({"groups.csv": TABLE + "unlabelled/9.png,p1\n"}, more=("unlabelled/9.png",))
    assert found.group_of == GROUPS


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"groups.csv": TABLE + "a/1.png,p9\n"}, "names a/1.png with the groups p1 and p9"),
        ({"groups.csv": TABLE + "a/9.png,p9\n"}, "names a/9.png, but there is no such image"),
        ({"groups.csv": "name,patient\na/1.png,p1\n"}, "does not have just the columns name,group"),
        ({"groups.csv": TABLE.encode("cp1252")}, "cannot be read as CSV in UTF-8"),
        (
            {"groups.csv": TABLE, "a/groups.csv": "name,group\n1.png,p9\n"},
            "groups.csv puts a/1.png into the group",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_an_error(tables, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tables)
    assert str(caught.value).startswith("cells: ")


def test_a_name_that_fits_two_images_is_an_error():
    with pytest.raises(UserError, match=r"names a/X.png, but .* differ only in form"):
        read({"groups.csv": "name,group\na/X.png,p1\n"}, images=("a/x.png", "a/x.PNG"))


@pytest.mark.parametrize("turned", [False, True])
def test_the_spelling_of_a_group_does_not_depend_on_the_order_of_rows(turned):
    cells = ["Anna", "anna", "anna ", "P", "p", "none"]
    found, facts = groups.of_column(cells[::-1] if turned else cells)
    expected = ["anna", "anna", "anna", "P", "P", ""]
    assert found == (expected[::-1] if turned else expected)
    assert facts == ("2 groups, none for 1 of 6 images",)
