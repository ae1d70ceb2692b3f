"""Reader and writer of safetensors files; the only module that imports safetensors."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from bloodjax.errors import UserError
from bloodjax.io import files

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads a file's tensors and metadata.

    Returns:
      Arrays by name, and the metadata; {} if there is none.

    Raises:
      UserError: the file cannot be read, is damaged, or has a dtype that NumPy lacks.
    """
    try:
        content = path.read_bytes()
        tensors = safetensors.deserialize(content)
        # The library returns metadata for files, but not for bytes.
        with safetensors.safe_open(path, framework="numpy") as opened:
            metadata = dict(opened.metadata() or {})
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}, expected a safetensors file"
        ) from error
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path}: truncated or not a safetensors file ({error}), expected an intact one"
        ) from error
    arrays = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _DTYPES:
            raise UserError(
                f"{path}: {name} is of type {tensor['dtype']}, expected one of {', '.join(_DTYPES)}"
            )
        little_endian = np.dtype(_DTYPES[tensor["dtype"]]).newbyteorder("<")
        arrays[name] = np.frombuffer(tensor["data"], little_endian).reshape(tensor["shape"])
    return arrays, metadata


def write(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a file atomically.

    A surrogate in the metadata, which the name of a file that is not UTF-8 has, is written as an
    escape such as \\udce9.

    Raises:
      UserError: `path` cannot be written.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    # ascontiguousarray adds an axis to a scalar.
    contiguous = {name: array.reshape(arrays[name].shape) for name, array in contiguous.items()}
    texts = {k: v.encode("utf-8", "backslashreplace").decode() for k, v in metadata.items()}
    content = safetensors.numpy.save(contiguous, metadata=texts)
    try:
        files.atomic_write(path, content)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a file to write") from error
