import numpy as np
import pyarrow.parquet
import pytest

from bloodjax.io import parquet


def test_reads_what_it_writes(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(
        parquet.encode(
            {
                "name": parquet.Column(["a", None], "text"),
                "label": parquet.Column(["x", "x"], "repeated text"),
                "p": parquet.Column(np.array([0.5, 1], np.float32), "float32"),
                "set": parquet.Column([["a"], []], "texts"),
            }
        )
    )
    names, values, others = parquet.read(path)
    assert others == {3: "list<element: string>"}
    assert names == ["name", "label", "p", "set"]
    assert values[:3] == [["a", None], ["x", "x"], [0.5, 1.0]]
    assert values[3] == ["<list<element: string>>"] * 2, "what has no text is named"


def test_a_name_with_a_dot_is_no_field_of_another_column(tmp_path):
    columns = {"a": [{"b": "x"}, {"b": "y"}], "c": ["p", "q"], "a.b": ["1", "2"]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    names, values, others = parquet.read(tmp_path / "t.parquet")
    assert others == {0: "struct<b: string>"}
    assert names == ["a", "c", "a.b"]
    assert values == [["<struct<b: string>>"] * 2, ["p", "q"], ["1", "2"]]


def test_a_damaged_file_is_a_value_error(tmp_path):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"Parquet|magic"):
        parquet.read(path)
