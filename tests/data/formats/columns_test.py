import pytest

from bloodjax.data.formats import columns
from bloodjax.errors import UserError


def find(header, rows=(), text="", **options):
    return columns.find("t.csv", header.split(","), [r.split(",") for r in rows], text, **options)


HEADERS = {
    "path,label": (0, (1,)),
    "dx,image_id": (1, (0,)),
    "Image Name,Cell-Type": (0, (1,)),
    "id,name_of_slide,class": (0, (2,)),
    "image,id,category": (0, (2,)),
    "FILENAME,Target,sex": (0, (1,)),
}


@pytest.mark.parametrize(("header", "expected"), HEADERS.items())
def test_columns_are_found_by_their_names(header, expected):
    found = find(header)
    assert (found.path, found.label) == expected


def test_the_columns_of_ham10000():
    found = find("lesion_id,image_id,dx,dx_type,age,sex,localization,dataset")
    assert (found.path, found.label, found.group, found.split) == (1, (2,), 0, None)
    assert found.details == ("columns path=image_id, label=dx, group=lesion_id",)


def test_optional_columns():
    found = find("path,label,Split,patient_id,sample_weight")
    assert (found.split, found.group, found.weight) == (2, 3, 4)


def test_one_hot_columns_are_those_of_only_0_and_1():
    rows = ["a,1.0,0.0,0.0,0,7", "b,0.0,1.0,0.0,0,9"]
    found = find("image,MEL,NV,UNK,BKL,age", rows)
    assert found.label == (1, 2)
    assert found.is_one_hot
    assert found.details[1] == "no image of UNK, BKL"


def test_a_label_column_comes_before_one_hot_ones():
    assert find("image,label,A,B", ["a,x,0,1", "b,y,1,0"]).label == (1,)


def test_the_user_names_columns():
    rows = ["a,1,0,0", "b,0,1,0"]
    assert find("img,A,B,C", rows, "path=img,label=A+C").label == (1, 3)
    assert find("Bild,Typ", (), "path=Bild,label=typ").label == (1,), "another form is the same"
    assert find("path,A+B,split", (), "label=A+B,split=").split is None
    assert find("path,label", (), "").label == (1,)


def test_a_column_with_a_comma_is_quoted():
    assert columns.parse('path=x,"label=type, of cell"') == {"path": "x", "label": "type, of cell"}


WRONG = {
    "only numbers": ("a,b", "", "no column of images, only a, b"),
    "no label": ("path,age", "", "no column of labels, only path, age"),
    "two paths": ("image,file,label", "", "image and file could each be the path"),
    "two labels": ("path,label,dx", "", "label and dx could each be the label"),
    "two groups": ("path,label,patient_id,slide_id", "", "could each be the group"),
    "twice": ("path,label,label", "", "row 1, column 3: label is there twice"),
    "unknown": ("path,label", "label=lable", "has no column lable .* did you mean label"),
    "stated twice": ("path,A,B", "label=A+A", "names a column twice"),
}


@pytest.mark.parametrize(("header", "text", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_missing_or_ambiguous_is_said(header, text, message):
    with pytest.raises(UserError, match=message):
        find(header, [], text)


def test_without_labels_only_the_paths_matter():
    assert find("image,label,dx", needs_labels=False).path == 0


@pytest.mark.parametrize(
    "text", ["label", "label:dx", "klass=dx", "path=", "label=a,label=b", '"label=a', "=x"]
)
def test_a_text_of_another_form_is_refused(text):
    with pytest.raises(UserError, match=r"--columns=.*expected KIND=COLUMN"):
        columns.check(text, "--columns")


HOT = {"1,1": "a 1 in A, B, expected exactly one 1", "0,0": "no 1", "0,2": "column B: '2'"}


@pytest.mark.parametrize(("row", "message"), HOT.items())
def test_a_row_has_exactly_one_1(row, message):
    hot = columns.Columns(0, (1, 2))
    with pytest.raises(UserError, match=message):
        columns.class_of("t.csv: row 3", ("path", "A", "B"), ("x", *row.split(",")), hot)
