"""Parquet files as columns of Python values. The only module that imports pyarrow."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

Kind = Literal["float32", "int8", "int64", "text", "repeated text", "texts"]


class Column(NamedTuple):
    """A column to write.

    Attributes:
      values: Its values; None is an unknown one.
      kind: Their type. "repeated text" has few different values, which the file stores as codes and
        a dictionary; "texts" is a list of texts in each row.
    """

    values: Sequence | np.ndarray
    kind: Kind


def encode(columns: Mapping[str, Column]) -> bytes:
    """The content of a Parquet file with these columns."""
    import pyarrow  # imported here because it takes as long as the rest of a command's start
    import pyarrow.parquet

    text = pyarrow.string()
    types = {
        "float32": pyarrow.float32(),
        "int8": pyarrow.int8(),
        "int64": pyarrow.int64(),
        "text": text,
        "repeated text": pyarrow.dictionary(pyarrow.int32(), text),
        "texts": pyarrow.list_(text),
    }
    arrays = {name: pyarrow.array(c.values, types[c.kind]) for name, c in columns.items()}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), sink)
    return sink.getvalue()


def read(path: pathlib.Path) -> tuple[list[str], list[list], dict[int, str]]:
    """The columns of a Parquet file.

    Returns:
      Their names, their values, and of those columns that have neither texts, numbers, booleans nor
      dates the index and the type; such a column has its type's name in place of its values.

    Raises:
      ValueError: The file is damaged or no Parquet file.
      OSError: The file cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = list(file.schema_arrow.names)
        plain = [i for i, kind in enumerate(file.schema_arrow.types) if _is_plain(kind)]
        table = file.read([names[i] for i in plain])
        # A name such as "a.b" also selects the field b of a column a.
        columns = [column.to_pylist() for column in table.columns if _is_plain(column.type)]
        values = dict(zip(plain, columns, strict=True))
        rows = file.metadata.num_rows
        types = file.schema_arrow.types
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error
    others = {i: str(types[i]) for i in range(len(names)) if i not in values}
    return names, [values.get(i, [f"<{types[i]}>"] * rows) for i in range(len(names))], others


def _is_plain(kind) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    tests = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_integer,
        types.is_floating,
        types.is_decimal,
        types.is_boolean,
        types.is_temporal,
    )
    return any(test(kind) for test in tests)
