import datetime
import decimal
import os
import re
import zipfile

import numpy as np
import pyarrow.parquet
import pytest

from bloodjax.data import images, own_size, sources
from bloodjax.data.formats import excel, table, table_cells
from bloodjax.data.formats.table_images import TableImages
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError
from bloodjax.io import buckets, parquet, remote

N = 12
LABELS = ["eosinophil"] * 4 + ["basophil"] * 4 + ["monocyte"] * 4
ROWS = [(f"img/cell_{i:02d}.png", LABELS[i], f"p{i // 2}") for i in range(N)]
HEADER = ("path", "label", "patient_id")


@pytest.fixture(scope="module")
def pictures():
    """PNG files of N different images."""
    pixels = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
    return [images.encode_png(each) for each in pixels]


@pytest.fixture
def folder(tmp_path, pictures):
    (tmp_path / "img").mkdir()
    for (path, *_), png in zip(ROWS, pictures, strict=True):
        (tmp_path / path).write_bytes(png)
    return tmp_path


def text(rows=ROWS, header=HEADER, delimiter=","):
    return "".join(f"{delimiter.join(map(str, row))}\n" for row in (header, *rows))


def write(folder, content, name="labels.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def load(folder, content, name="labels.csv", **options):
    return sources.load(write(folder, content, name), 16, options=ReadOptions(**options))


def error(folder, content, name="labels.csv", **options):
    with pytest.raises(UserError) as caught:
        load(folder, content, name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}/")


FILES = {
    "labels.csv": text().encode(),
    "mark.csv": text().encode("utf-8-sig"),
    "utf16.csv": text().encode("utf-16"),
    "semicolons.csv": text(delimiter=";").encode(),
    "line_ends.csv": text().replace("\n", "\r\n").encode(),
    "labels.tsv": text(delimiter="\t").encode(),
    "quoted.csv": text([[f'"{cell}"' for cell in row] for row in ROWS]).encode(),
    "blanks.csv": text([[f" {cell} " for cell in row] for row in ROWS]).encode() + b"\n,,\n",
    "index.csv": text([(i, *row) for i, row in enumerate(ROWS)], ("", *HEADER)).encode(),
    "windows.csv": text([(r[0].replace("/", "\\"), *r[1:]) for r in ROWS]).encode(),
    "shuffled.csv": text(ROWS[::-1]).encode(),
    "labels.parquet": parquet.encode(
        {
            name: parquet.Column(values, "text")
            for name, values in zip(HEADER, zip(*ROWS, strict=True), strict=True)
        }
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_table_is_the_same_data_in_every_format(folder, pictures, name):
    found = load(folder, FILES[name], name)
    assert found.classes == ("basophil", "eosinophil", "monocyte")
    assert [found.classes[i] for i in found.labels] == LABELS
    assert found.names == tuple(path for path, *_ in ROWS)
    assert found.groups == tuple(group for *_, group in ROWS)
    np.testing.assert_array_equal(found.images[5], images.decode(pictures[5], 16))
    same = write(folder, FILES["labels.csv"])
    assert sources.fingerprint(str(folder / name)) == sources.fingerprint(same)


def test_an_excel_workbook_is_the_same_data(folder):
    openpyxl = pytest.importorskip("openpyxl", reason="reading Excel needs the extra excel")
    book = openpyxl.Workbook()
    book.active.append(HEADER)
    for row in ROWS:
        book.active.append(row)
    book.create_sheet("notes").append(["made by", datetime.date(2026, 1, 1)])
    book.save(folder / "labels.xlsx")
    found = sources.load(str(folder / "labels.xlsx"), 16)
    assert [found.classes[i] for i in found.labels] == LABELS
    assert found.reading.details[0] == "sheet Sheet, of 2"
    same = write(folder, text())
    assert sources.fingerprint(str(folder / "labels.xlsx")) == sources.fingerprint(same)


@pytest.mark.parametrize("stated", ["A1:C5", "A1:B13", "A1", ""])
def test_the_size_that_a_workbook_states_is_not_believed(folder, stated):
    openpyxl = pytest.importorskip("openpyxl", reason="reading Excel needs the extra excel")
    book = openpyxl.Workbook()
    book.active.append((*HEADER, "note"))
    for i, row in enumerate(ROWS):
        book.active.append((*row, "x") if i == 0 else row)  # shorter than the header
    book.save(folder / "plain.xlsx")
    with (
        zipfile.ZipFile(folder / "plain.xlsx") as plain,
        zipfile.ZipFile(folder / "labels.xlsx", "w") as changed,
    ):
        for name in plain.namelist():
            content = plain.read(name)
            if name == "xl/worksheets/sheet1.xml":
                size = f'<dimension ref="{stated}" />'.encode() if stated else b""
                content = re.sub(rb'<dimension ref="[^"]*" ?/>', size, content)
                assert content != plain.read(name)
            changed.writestr(name, content)
    found = sources.load(str(folder / "labels.xlsx"), 16)
    assert [found.classes[i] for i in found.labels] == LABELS
    assert found.groups == tuple(row[2] for row in ROWS)


@pytest.mark.parametrize(
    ("column", "values", "shown"),
    [
        ("label", [["x"]] * N, "list<"),
        ("patient_id", [{"a": 1}] * N, "struct<a: int64>"),
        ("path", [b"a"] * N, "binary"),
    ],
)
def test_values_that_are_no_texts_are_refused_where_they_are_needed(folder, column, values, shown):
    rows = {name: [row[i] for row in ROWS] for i, name in enumerate(HEADER)}
    path = folder / "labels.parquet"
    pyarrow.parquet.write_table(pyarrow.table({**rows, "notes": values}), path)
    assert len(sources.load(str(path), 16)) == N
    pyarrow.parquet.write_table(pyarrow.table({**rows, column: values}), path)
    with pytest.raises(UserError, match=f"column {column} has the type {shown}.*, expected text"):
        sources.load(str(path), 16)


def test_a_database_s_decimals_are_the_numbers_of_a_csv(folder):
    groups = [decimal.Decimal(f"{i // 2}.00") for i in range(N)]
    rows = {"path": [row[0] for row in ROWS], "label": LABELS, "patient_id": groups}
    path = folder / "labels.parquet"
    pyarrow.parquet.write_table(pyarrow.table(rows), path)
    assert sources.load(str(path), 16).groups == tuple(str(i // 2) for i in range(N))


def test_a_workbook_that_is_none_is_one_line(folder):
    pytest.importorskip("openpyxl", reason="reading Excel needs the extra excel")
    assert "expected a complete Excel workbook" in error(folder, b"no zip", "labels.xlsx")


def test_without_openpyxl_one_line_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    path = folder / "labels.xlsx"
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match=r"pip install 'bloodjax\[excel\]'"):
        excel.rows(path)


def test_identifiers_are_found_in_any_folder_and_with_any_suffix(folder):
    rows = [(path[4:-4], label) for path, label, _ in ROWS]
    found = load(folder, text(rows, ("image_id", "dx")))
    assert found.names == tuple(path for path, *_ in ROWS)
    assert found.reading.details[0] == "columns path=image_id, label=dx"


def test_images_may_be_in_another_folder_or_a_zip(folder, tmp_path_factory):
    import zipfile

    place = tmp_path_factory.mktemp("tables")
    rows = [(path[4:], label, group) for path, label, group in ROWS]
    found = load(place, text(rows), images=str(folder / "img"))
    assert found.names[0] == "cell_00.png"
    with zipfile.ZipFile(place / "img.zip", "w") as zipped:
        for path, *_ in ROWS:
            zipped.write(folder / path, f"all/{path}")
    zipped = load(place, text(), images=str(place / "img.zip"))
    assert zipped.names[0] == "all/img/cell_00.png"
    np.testing.assert_array_equal(found.images, zipped.images)


def test_latin_1_is_read_and_said(folder):
    rows = [(path, "Mégacaryocyte" if i < 6 else "b") for i, (path, *_) in enumerate(ROWS)]
    found = load(folder, text(rows, HEADER[:2]).encode("latin-1"))
    assert "Mégacaryocyte" in found.classes
    assert "read as Windows-1252" in found.reading.details


def test_one_hot_columns_keep_their_order(folder):
    rows = [
        (path, *(f"{float(label == c)}" for c in "emb"))
        for path, label in ((path, label[0]) for path, label, _ in ROWS)
    ]
    found = load(folder, text(rows, ("image", "e", "m", "b")))
    assert found.classes == ("e", "m", "b")
    assert [found.classes[i] for i in found.labels] == [label[0] for label in LABELS]


def test_numbers_are_positions_in_the_names_that_are_given(folder):
    rows = [(path, i % 3) for i, (path, *_) in enumerate(ROWS)]
    path = write(folder, text(rows, ("path", "label")))
    assert sources.load(path, 16).classes == ("0", "1", "2")
    named = sources.load(path, 16, class_names=("x", "y", "z"))
    assert named.classes == ("x", "y", "z")
    assert named.labels.tolist() == [i % 3 for i in range(N)]
    padded = write(folder, text([(p, f"0{i}") for p, i in rows], ("path", "label")))
    assert sources.load(padded, 16, class_names=("0", "1", "2")).labels.tolist() == [
        i % 3 for i in range(N)
    ]


def test_a_number_that_is_no_class_is_unknown_if_others_are_classes(folder):
    """A grade that a run does not know must not shift the grades that it does."""
    rows = [(path, i % 3) for i, (path, *_) in enumerate(ROWS)]
    path = write(folder, text(rows, ("path", "grade")))
    options = ReadOptions(columns="label=grade")
    with pytest.raises(UserError, match=r"column grade: the class 0 is unknown, .*1, 2, 3"):
        sources.load(path, 16, class_names=("1", "2", "3"), options=options)


def test_splits_and_weights(folder):
    rows = [(*row[:2], ("train", "Valid", "TEST")[i % 3], 0.5 + i) for i, row in enumerate(ROWS)]
    found = load(folder, text(rows, ("path", "label", "split", "weight")))
    assert found.splits == ("train", "val", "test") * 4
    assert found.weights.tolist() == [0.5 + i for i in range(N)]
    assert found.take(np.arange(3)).weights.tolist() == [0.5, 1.5, 2.5]
    assert found.concatenate(found).weights.tolist() == found.weights.tolist() * 2
    assert "weights 0.5 to 11.5" in found.reading.details
    without = load(folder, text(rows, ("path", "label", "split", "note")), columns="split=")
    assert set(without.splits) == {""}
    assert without.weights is None


def test_images_without_labels_keep_the_order_of_the_rows(folder, pictures):
    path = write(folder, "note,image\nx,cell_03\ny,cell_01.png\n")
    found = sources.load_images(path, 16)
    assert found.names == ("img/cell_03.png", "img/cell_01.png")
    whole = own_size.reader(path, found)(1)
    np.testing.assert_array_equal(whole, images.decode(pictures[1], 16))
    path = write(folder, "image,patient,slide\ncell_03,p1,s1\ncell_01,p2,s2\n")
    with pytest.raises(UserError, match="patient and slide could each be the group"):
        sources.load_images(path, 16)
    for stated, groups in (("patient", ("p1", "p2")), ("", ("", ""))):
        options = ReadOptions(columns=f"label=dx,group={stated}")
        assert sources.load_images(path, 16, options=options).groups == groups


def test_stated_columns_of_images_to_classify_are_found_in_any_form(folder):
    path = write(folder, 'Image,"he ""said""",patient,slide\ncell_03,p1,s1,x1\ncell_01,p2,s2,x2\n')
    for stated, groups in (
        ("path=IMAGE,group=Slide", ("x1", "x2")),
        ("path=image,group=PATIENT", ("s1", "s2")),
        ('path=Image,"group=he ""said"""', ("p1", "p2")),
    ):
        options = ReadOptions(columns=stated)
        assert sources.load_images(path, 16, options=options).groups == groups
    path = write(folder, "image,patient\ncell_03,p1\n")
    options = ReadOptions(columns="group=slide")
    assert sources.load_images(path, 16, options=options).groups == ("p1",)


WRONG = {
    "missing file": ("img/none.png,x", "row 3, column path: img/none.png: there is no such image"),
    "other suffix": ("img/cell_05.jpg,x", "there is img/cell_05.png"),
    "long name": (f"{'x' * 3000}.png,x", "xx: there is no such image"),
    "double row": ("img/cell_00.png,x", "row 3, column path: img/cell_00.png is in row 2 too"),
    "double in another form": ("IMG\\cell_00.png,x", "is in row 2 too"),
    "leaves": ("../secret.png,x", "row 3, column path: ../secret.png: it leaves"),
    "absolute": ("/etc/hostname,x", "row 3, column path: /etc/hostname: it leaves"),
    "of Windows": ("C:\\a.png,x", "it is a path of Windows"),
    "no path": (",x", "row 3, column path: is empty, expected the path of an image"),
    "no label": ("img/cell_01.png,", "row 3, column label: is empty, expected a class"),
    "NaN": ("img/cell_01.png,NaN", "row 3, column label: NaN stands for a missing label"),
    "NA": ("img/cell_01.png,NA", "label: NA stands for a missing label, expected a class; if a"),
    "n/a": ("img/cell_01.png,n/a", "row 3, column label: n/a stands for a missing label"),
    "null": ("img/cell_01.png,null", "row 3, column label: null stands for a missing label"),
    "None": ("img/cell_01.png,None", "list all classes in config.data.classes (--classes), or"),
    "long row": ("img/cell_01.png,x,y", "row 3 has 3 cells, expected 2 as in the header"),
    "short row": ("img/cell_01.png", "row 3 has 1 cells, expected 2"),
    "open quote": ('"img/cell_01.png,x', "row 3: unexpected end of data"),
}


@pytest.mark.parametrize(("row", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_named_with_row_and_column(folder, row, message):
    found = error(folder, f"path,label\nimg/cell_00.png,x\n{row}\n")
    assert found.startswith("labels.csv: ")
    assert message in found


def test_an_image_in_a_folder_that_may_not_be_entered_is_one_line(folder, monkeypatch):
    (folder / "closed").mkdir()

    def refusing(function):
        def call(path=".", *args, **kwargs):
            if "closed" in str(path):
                raise PermissionError(13, "Permission denied", path)
            return function(path, *args, **kwargs)

        return call

    monkeypatch.setattr(os, "stat", refusing(os.stat))
    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    found = error(folder, "path,label\nimg/cell_00.png,x\nclosed/a.png,y\n")
    assert found.startswith("labels.csv: row 3, column path: closed/a.png: ")
    assert found.endswith("closed: cannot be read (Permission denied)")


def test_an_absolute_path_in_the_folder_is_one_of_it(folder):
    content = f"path,label\n{folder}/img/cell_00.png,x\n{folder}/./img/cell_01.png,y\n"
    assert load(folder, content).names == ("img/cell_00.png", "img/cell_01.png")


COLUMNS = {
    "split": ("holdout", "row 3, column split: holdout is no split, expected train, val or test"),
    "weight": ("-1", "row 3, column weight: -1 is no weight, expected a number of at least 0"),
}


@pytest.mark.parametrize(("column", "value", "message"), [(k, *v) for k, v in COLUMNS.items()])
def test_a_wrong_value_of_an_optional_column(folder, column, value, message):
    first = {"split": "train", "weight": "1"}[column]
    content = f"path,label,{column}\nimg/cell_00.png,x,{first}\nimg/cell_01.png,y,{value}\n"
    assert message in error(folder, content)


def test_an_unknown_class_is_named_with_its_row(folder):
    path = write(folder, text())
    with pytest.raises(UserError, match="row 2, column label: the class eosinophil is unknown"):
        sources.load(path, 16, class_names=("basophil", "monocyte"))


EMPTY = {"": "has no rows", "path,label\n": "has no rows", "a.png,x\nb.png,y\n": "no column"}


@pytest.mark.parametrize(("content", "message"), EMPTY.items())
def test_a_table_without_rows_or_header(folder, content, message):
    assert message in error(folder, content)


def test_other_formats_and_missing_files(folder):
    assert "expected the table as one of .csv" in error(folder, b"", "labels.xls")
    write(folder, text())
    with pytest.raises(UserError, match=r"there is .*labels\.csv"):
        sources.load(str(folder / "Labels.csv"), 16)
    assert "cannot be read as Parquet" in error(folder, b"PAR1", "labels.parquet")


def test_several_files_of_a_name_are_one_only_if_they_are_equal(folder):
    (folder / "copy").mkdir()
    copy = folder / "copy" / "cell_00.png"
    copy.write_bytes((folder / "img" / "cell_00.png").read_bytes())
    content = "path,label\ncell_00,x\ncell_01,y\n"
    assert load(folder, content).names == ("copy/cell_00.png", "img/cell_01.png")
    copy.write_bytes((folder / "img" / "cell_02.png").read_bytes())
    assert "row 2, column path: cell_00: there are several" in error(folder, content)


def test_an_unreadable_image_is_named_or_left_out(folder):
    (folder / "img" / "cell_00.png").write_bytes(b"no image")
    assert "img/cell_00.png is not a readable image" in error(folder, text())
    found = load(folder, text(), bad_images="skip")
    assert len(found) == N - 1
    assert found.reading.left_out[0][:2] == ("unreadable", "eosinophil")


def test_the_fingerprint_follows_what_is_used(folder):
    path = write(folder, text())
    before = sources.fingerprint(path)
    assert sources.has_fingerprint(path, before)
    write(folder, text([(*row, "x") for row in ROWS], (*HEADER, "comment")))
    assert sources.fingerprint(path) == before, "a column that is not used"
    write(folder, text([(path, label, "p0") for path, label, _ in ROWS]))
    assert sources.fingerprint(path) != before, "other groups"


def test_a_class_may_be_called_none_if_it_is_listed(folder):
    content = text(
        [(path, "None" if i < 4 else label, g) for i, (path, label, g) in enumerate(ROWS)]
    )
    assert "row 2, column label: None stands for a missing label" in error(folder, content)
    path = write(folder, content)
    found = sources.load(path, 16, class_names=("none", "basophil", "monocyte"))
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert sources.has_fingerprint(path, sources.fingerprint(path))
    assert table.read(path, refuses_missing=False)[1].classes == ("None", "basophil", "monocyte")


def test_the_most_frequent_spelling_names_a_class(folder):
    spelt = ["BASOPHIL", "basophil", "basophil", "basophil", "Basophil", *["monocyte"] * 7]
    content = text([(row[0], label) for row, label in zip(ROWS, spelt, strict=True)], HEADER[:2])
    found = load(folder, content)
    assert found.classes == ("basophil", "monocyte")
    assert "BASOPHIL taken as basophil" in found.reading.details
    before = sources.fingerprint(str(folder / "labels.csv"))
    load(folder, content.replace("BASOPHIL", "basophil"))
    assert sources.fingerprint(str(folder / "labels.csv")) == before
    load(folder, content.replace("basophil", "BASOPHIL"))
    assert sources.fingerprint(str(folder / "labels.csv")) != before


def test_the_suffix_of_a_table_may_be_in_capitals():
    assert table_cells.has_suffix("gs://bucket/labels.TSV")


def test_a_folder_without_classes_names_the_table_in_it(folder):
    write(folder / "img", text())
    with pytest.raises(UserError, match=r"if .*img/labels\.csv is a table of labels, expected it"):
        sources.load(str(folder / "img"), 16)


def test_images_that_are_not_there_are_one_line():
    with pytest.raises(UserError, match="no such folder or zip, expected the images of a table"):
        TableImages("/none/at/all")


@pytest.mark.parametrize("place", ["beside", "images", "urls"])
def test_a_table_and_its_images_in_a_bucket_are_the_local_ones(make_bucket, folder, place):
    bucket = make_bucket("s3")
    for path, *_ in ROWS:
        remote.upload(folder / path, bucket / f"data/{path}")
    buckets.write_bytes(bucket / "data/unrelated.png", b"not named by a row")
    local = sources.load(write(folder, text()), 16)
    options = ReadOptions()
    if place == "beside":
        spec = bucket / "data/labels.csv"
        remote.upload(folder / "labels.csv", spec)
    elif place == "images":
        rows = [(path[4:-4], *row) for path, *row in ROWS]
        spec = write(folder, text(rows), "ids.csv")
        options = ReadOptions(images=bucket / "data/img")
    else:
        spec = write(folder, text([(bucket / f"data/{p}", *row) for p, *row in ROWS]), "urls.csv")
    found = sources.load(spec, 16, options=options)
    assert found.labels.tolist() == local.labels.tolist()
    assert found.groups == local.groups
    np.testing.assert_array_equal(found.images, local.images)
    if place == "beside":
        assert found.names == local.names
        assert sources.fingerprint(spec) == sources.fingerprint(str(folder / "labels.csv"))
        copied = [p.name for p in remote.cache_folder().rglob("*.png")]
        assert "unrelated.png" not in copied


def test_what_is_not_in_the_bucket_is_named_with_its_row(make_bucket, folder):
    bucket = make_bucket("s3")
    buckets.write_bytes(bucket / "data/img/cell_00.png", b"x")
    options = ReadOptions(images=bucket / "data")
    path = write(folder, "path,label\nimg/cell_00.png,x\nimg/none.png,y\n")
    with pytest.raises(UserError, match=r"row 3, column path: img/none.png: there is no such"):
        sources.load(path, 16, options=options)
    for url in (bucket / "other/none.png", bucket / "data/img/none.png"):
        path = write(folder, f"path,label\n{url},x\n")
        with pytest.raises(UserError, match=r"row 2, column path: s3://.*none\.png: .*no such obj"):
            sources.load(path, 16)
