"""Reader of PyTorch's weight files, without PyTorch and without running code from the file.

It reads both formats of `torch.save`: the zip archive (PyTorch 1.6 and later) and the older stream
of pickles. A pickle can name any Python function and have it called. This reader resolves only the
names in `_GLOBALS`, whose values are inert; a file with any other name is rejected. This is the
guarantee of `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import collections
import io
import math
import pathlib
import pickle
import sys
import zipfile
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bloodjax.errors import UserError

# The first two pickles of a file in the older format.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001

# Keys under which training scripts store the state dict, and that of the averaged weights (EMA).
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict")


class _Damaged(Exception):
    """The file is inconsistent."""


# The objects that a pickle can reach are named tuples, because they are immutable: the pickle's
# BUILD instruction, which sets attributes, could otherwise change them for the next file, or change
# a tensor's window after it was checked.
class _StorageType(NamedTuple):
    """Replaces torch.FloatStorage and the like."""

    dtype: np.dtype


class _Storage(NamedTuple):
    """A sequence of numbers in the file; a view of a storage begins at number `start`."""

    key: str
    dtype: np.dtype
    numel: int
    start: int = 0


class _Tensor(NamedTuple):
    """A strided window on a storage, checked but not yet read."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Rebuild(NamedTuple):
    """Replaces one of the PyTorch functions that rebuild a tensor."""

    name: str

    def __call__(self, *args: Any) -> _Tensor | tuple[int, ...]:
        if self.name == "size":
            return _sizes(args[0] if args else ())
        if self.name == "parameter":  # arguments: tensor, requires_grad, hooks
            if not isinstance(args[0], _Tensor):
                raise _Damaged("a parameter is not a tensor")
            return args[0]
        storage, offset, size, stride = args[:4]  # then requires_grad, hooks, metadata
        if not isinstance(storage, _Storage):
            raise _Damaged("a tensor has no storage")
        size, stride = _sizes(size), _sizes(stride)
        (offset,) = _sizes((offset,))
        if len(size) != len(stride):
            raise _Damaged(f"a tensor of {len(size)} axes has {len(stride)} strides")
        # With a stride of 0, one number could become a tensor of any size.
        last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
        if math.prod(size) and (math.prod(size) > storage.numel or last >= storage.numel):
            raise _Damaged(f"a tensor of shape {size} is larger than its {storage.numel} numbers")
        return _Tensor(storage, offset, size, stride)


_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}

_GLOBALS = {
    "collections.OrderedDict": collections.OrderedDict,
    "torch.Size": _Rebuild("size"),
    "torch._utils._rebuild_tensor": _Rebuild("tensor"),
    "torch._utils._rebuild_tensor_v2": _Rebuild("tensor"),
    "torch._utils._rebuild_parameter": _Rebuild("parameter"),
} | {f"torch.{name}": _StorageType(dtype) for name, dtype in _DTYPES.items()}


class _Unpickler(pickle.Unpickler):
    """Unpickler that resolves only the names in `_GLOBALS`, and storages.

    Attributes:
      dtypes: storage key -> dtype, of the storages seen so far.
    """

    def __init__(self, stream: io.BufferedIOBase, path: pathlib.Path):
        super().__init__(stream, encoding="utf-8")
        self._path = path
        self.dtypes: dict[str, np.dtype] = {}

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _GLOBALS:
            raise UserError(
                f"{self._path}: refers to {module}.{name}, which may run code and is rejected: "
                "expected a state dict of plain tensors, as torch.save(model.state_dict()) writes"
            )
        return _GLOBALS[f"{module}.{name}"]

    def persistent_load(self, saved: Any) -> _Storage:
        tag, storage_type, key, _, numel, *view = saved
        if tag != "storage" or not isinstance(storage_type, _StorageType):
            raise _Damaged(f"contains a {str(tag)[:40]!r} instead of a storage")
        (numel,) = _sizes((numel,))
        start = 0
        if view and view[0] is not None:
            _, start, size = view[0]
            start, size = _sizes((start, size))
            if start + size > numel:
                raise _Damaged("a view is larger than its storage")
            numel = size
        if self.dtypes.setdefault(str(key), storage_type.dtype) != storage_type.dtype:
            raise _Damaged(f"storage {key} is of two types")
        return _Storage(str(key), storage_type.dtype, numel, start)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a `.pth`, `.pt` or `.bin` file.

    Returns:
      Arrays by name. A state dict under the key "state_dict" or "model" is unwrapped.

    Raises:
      UserError: the file cannot be read, is damaged, refers to code, or contains no state dict.
    """
    try:
        with path.open("rb") as stream:
            zipped = stream.read(2) == b"PK"
            stream.seek(0)
            return _read_zip(stream, path) if zipped else _read_stream(stream, path)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected a PyTorch file") from error
    except Exception as error:  # on damaged bytes, pickle and zipfile raise any exception
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path}: truncated or not a PyTorch file ({reason}), expected what torch.save writes"
        ) from error


def _read_zip(stream: io.BufferedIOBase, path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(stream) as archive:
        # torch.save never compresses; without compression a small file stays small in memory.
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _Damaged("the archive is compressed")
        pickles = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise _Damaged(f"{len(pickles)} data.pkl in the archive")
        folder = pickles[0].removesuffix("data.pkl")
        swapped = False
        if f"{folder}byteorder" in archive.namelist():
            swapped = archive.read(f"{folder}byteorder").decode().strip() != sys.byteorder
        with archive.open(pickles[0]) as data:
            state = _Unpickler(data, path).load()

        def load(key: str) -> bytes:
            return archive.read(f"{folder}data/{key}")

        tensors = _state_dict(state, path)
        arrays, key, raw = {}, None, b""
        # Sorted by storage, so that each is read once and only one is in memory.
        for name in sorted(tensors, key=lambda name: tensors[name].storage.key):
            if tensors[name].storage.key != key:
                key = tensors[name].storage.key
                raw = load(key)
            arrays[name] = _array(tensors[name], raw, swapped)
        return {name: arrays[name] for name in tensors}


def _read_stream(stream: io.BufferedIOBase, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the older format: five pickles, then length and numbers of each storage."""

    def load() -> Any:
        return _Unpickler(stream, path).load()

    magic, protocol = load(), load()
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise _Damaged("wrong magic number")
    swapped = load()["little_endian"] != (sys.byteorder == "little")
    unpickler = _Unpickler(stream, path)
    tensors = _state_dict(unpickler.load(), path)
    total, raw = path.stat().st_size, {}
    for key in load():
        numel = int.from_bytes(stream.read(8), "big" if swapped else "little", signed=True)
        length, left = numel * unpickler.dtypes[key].itemsize, total - stream.tell()
        if not 0 <= length <= left:
            raise _Damaged(f"storage {key} needs {length} bytes, {left} are left")
        raw[key] = stream.read(length)
    return {
        name: _array(tensor, raw[tensor.storage.key], swapped) for name, tensor in tensors.items()
    }


def _state_dict(state: Any, path: pathlib.Path) -> dict[str, _Tensor]:
    if isinstance(state, dict):
        found = [key for key in (*_WRAPPERS, *_AVERAGES) if isinstance(dict.get(state, key), dict)]
        if len(found) > 1:
            raise UserError(
                f"{path}: contains several state dicts ({', '.join(found)}), expected a file with "
                "the one to use"
            )
        state = dict.get(state, found[0]) if found else state
    if not isinstance(state, dict):
        raise UserError(
            f"{path}: contains a {type(state).__name__}, expected a state dict of tensors"
        )
    for name, tensor in dict.items(state):
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise UserError(
                f"{path}: entry {str(name)[:80]!r} is not a tensor, expected a state dict of "
                "tensors"
            )
    return dict(dict.items(state))


def _array(tensor: _Tensor, raw: bytes, swapped: bool) -> np.ndarray:
    """Copies a tensor out of its storage's bytes, in C order."""
    dtype = tensor.storage.dtype
    if len(raw) % dtype.itemsize or len(raw) // dtype.itemsize < (
        tensor.storage.start + tensor.storage.numel
    ):
        raise _Damaged(f"storage {tensor.storage.key} has {len(raw)} bytes")
    numbers = np.frombuffer(raw, dtype)[tensor.storage.start :]
    if math.prod(tensor.size) == 0:
        return np.empty(tensor.size, dtype)
    strides = tuple(s * dtype.itemsize for s in tensor.stride)
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.size, strides)
    return view.byteswap() if swapped else view.copy(order="C")


def _sizes(values: Any) -> tuple[int, ...]:
    """Checks that all values are integers of at least 0."""
    values = tuple(values)
    if not all(type(value) is int and value >= 0 for value in values):
        raise _Damaged("a size is not a non-negative integer")
    return values
