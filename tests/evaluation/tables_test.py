import csv
import io
import os
import pathlib

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bloodjax.errors import UserError
from bloodjax.evaluation import tables

CLASSES = ("basophil", "name", 'y "z"')
PROBABILITIES = np.float32([[0.25, 0.125, 0.625], [1 / 3, 0.5, 1 / 6], [1, 0, 0]])


def full():
    return tables.predictions(
        ["a,b.png", "slide 1/é.png", "c\udce9.png"],
        CLASSES,
        PROBABILITIES,
        ["name", None, "basophil"],
        refer=np.array([True, False, False]),
        why=["unsure, unlike the training cells", "", ""],
        sets=np.array([[1, 0, 1], [1, 1, 0], [1, 0, 0]], bool),
    )


def read_csv(columns):
    return list(csv.DictReader(io.StringIO(tables.to_csv(columns))))


def read_parquet(columns):
    return pyarrow.parquet.read_table(io.BytesIO(tables.to_parquet(columns)))


def test_csv_has_a_row_for_each_image():
    first, second, _ = read_csv(full())
    assert first == {
        "name": "a,b.png",
        "label": "name",
        "predicted": 'y "z"',
        "confidence": "0.625000",
        "refer": "1",
        "why": "unsure, unlike the training cells",
        "set": 'basophil;y "z"',
        "basophil": "0.250000",
        "probability of name": "0.125000",
        'y "z"': "0.625000",
    }
    assert (second["label"], second["refer"], second["why"]) == ("", "0", "")


def test_parquet_has_the_values_of_the_csv():
    table = read_parquet(full())
    expected = read_csv(full())
    assert table.column_names == list(expected[0])
    probabilities = table.column_names[-3:]
    for row, texts in zip(table.to_pylist(), expected, strict=True):
        for column in ("confidence", *probabilities):
            assert f"{row.pop(column):.6f}" == texts.pop(column)
        assert ";".join(row.pop("set")) == texts.pop("set")
        assert row.pop("name").replace("\\udce9", "\udce9") == texts.pop("name")
        assert {k: "" if v is None else str(v) for k, v in row.items()} == texts


def test_parquet_keeps_every_bit_of_a_probability():
    table = read_parquet(full())
    numbers = np.stack([table[c].to_numpy() for c in tables.probability_columns(CLASSES)], 1)
    np.testing.assert_array_equal(numbers, PROBABILITIES)
    assert table.schema.field("confidence").type == pyarrow.float32()


def test_unknown_values_are_null_in_parquet_and_empty_in_csv():
    columns = tables.predictions(["a.png"], ["x", "y"], np.float32([[0.25, 0.75]]))
    (row,) = read_parquet(columns).to_pylist()
    assert row == {
        "name": "a.png",
        "predicted": "y",
        "confidence": 0.75,
        "refer": None,
        "why": None,
        "x": 0.25,
        "y": 0.75,
    }
    assert read_csv(columns)[0]["refer"] == read_csv(columns)[0]["why"] == ""
    labelled = tables.predictions(["a.png"], ["x", "y"], np.float32([[0.25, 0.75]]), [None])
    assert read_parquet(labelled).to_pylist()[0]["label"] is None


def test_a_table_without_rows_has_its_columns_and_types():
    empty = tables.predictions([], ["x", "y"], np.zeros((0, 2), np.float32))
    table = read_parquet(empty)
    assert table.num_rows == 0
    assert tables.to_csv(empty) == ",".join(table.column_names) + "\n"
    types = {field.name: field.type for field in table.schema}
    assert types["refer"] == pyarrow.int8()
    assert types["x"] == pyarrow.float32()
    assert types["name"] == pyarrow.string()


def test_each_column_has_a_name_of_its_own():
    classes = ["name", "predicted", "probability of name", "set", "why", "nan", "a,b"]
    columns = tables.probability_columns(classes)
    assert columns == [
        *("probability of name", "probability of predicted"),
        *("probability of probability of name", "probability of set", "probability of why"),
        *("nan", "a,b"),
    ]
    table = tables.predictions(["x.png"], classes, np.full((1, 7), 1 / 7, np.float32), ["nan"])
    assert table["predicted"] == ["name"]
    assert list(table)[-7:] == columns


def test_the_group_stands_after_the_probabilities():
    arguments = ["a.png", "b.png"], ("group", "x"), np.float32([[0.25, 0.75], [0.5, 0.5]])
    plain = tables.predictions(*arguments)
    columns = tables.predictions(*arguments, groups=["P1", ""])
    assert list(columns) == [*plain, "group"]
    assert list(plain)[-2:] == ["probability of group", "x"]
    assert [(row["probability of group"], row["group"]) for row in read_csv(columns)] == [
        ("0.250000", "P1"),
        ("0.500000", ""),
    ]
    table = read_parquet(columns)
    assert table.column_names == list(columns)
    assert table["group"].to_pylist() == ["P1", None]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".PARQUET"])
def test_the_suffix_names_the_format(tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    tables.check_targets({"--out": out}, tmp_path / "cells")
    tables.write(out, full())
    if suffix == ".csv":
        assert out.read_text("utf-8").startswith("name,label,predicted,confidence,refer,why,set,")
    else:
        assert pyarrow.parquet.read_table(out).num_rows == 3
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^--out=a.xlsx: expected FILE.csv or FILE.parquet$"):
        tables.check_targets({"--out": pathlib.Path("a.xlsx")}, tmp_path)


@pytest.mark.parametrize(
    ("out", "groups", "message"),
    [
        ("folder.csv", "a.csv", r"^--out=.*folder.csv: is a folder, expected a file$"),
        ("pipe.csv", "a.csv", r"^--out=.*pipe.csv: is no ordinary file, expected a file$"),
        ("no/a.csv", "b.csv", r"^--out=.*a.csv: there is no folder .*no$"),
        ("a.csv", "./folder.csv/../a.csv", r"^--groups=.*a.csv: is the file of --out too"),
        ("a.csv", "cells/groups.csv", r"^--groups=.*groups.csv: is read with the images"),
        ("cells/sub/groups.csv", "a.csv", r"^--out=.*groups.csv: is read with the images"),
    ],
)
def test_files_that_must_not_be_replaced_are_refused(tmp_path, out, groups, message):
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "cells/sub").mkdir(parents=True)
    for folder in ("cells", "cells/sub"):
        (tmp_path / folder / "groups.csv").write_text("name,group\n")
    with pytest.raises(UserError, match=message):
        tables.check_targets(
            {"--out": tmp_path / out, "--groups": tmp_path / groups}, tmp_path / "cells"
        )


def test_the_table_of_the_images_is_not_replaced(tmp_path):
    (tmp_path / "cells.csv").touch()
    with pytest.raises(UserError, match=r"^--out=.*cells.csv: is read with the images"):
        tables.check_targets({"--out": tmp_path / "cells.csv"}, tmp_path / "cells.csv")
    tables.check_targets({"--out": tmp_path / "groups.csv"}, tmp_path / "cells.csv")


def test_ends_of_lines_in_a_name_are_quoted():
    names = ["a\rb", "a\r\nb", "a\nb", "a,b", 'a"b', "\r"]
    text = tables.csv_text([["name", "x"], *([name, None] for name in names)])
    assert text.startswith("name,x\n")
    assert [row[0] for row in csv.reader(io.StringIO(text, newline=""))] == ["name", *names]


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "p.csv"
    path.write_text("kept")
    monkeypatch.setattr(tables.os, "access", lambda found, mode: found != path)
    with pytest.raises(UserError, match=r"--out=.*p.csv: may not be written to, expected another"):
        tables.check_targets({"--out": path}, tmp_path / "cells")
