"""Locating weight files and reading their tensors, whatever the format.

A location, the value of `config.model.weights`, is a path of a file or of a folder that contains
`model.safetensors`, here or in a bucket (gs:// or s3://); `hf:OWNER/NAME[@REVISION][:FILE]` on the
Hugging Face Hub; or `package:NAME`: an installed Python package that contains one weight file.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import re

import numpy as np

from bloodjax.errors import UserError
from bloodjax.io import bucket_urls, buckets, remote
from bloodjax.pretrained import hub, keras_file, safetensors_file, torch_file

_TORCH = (".pth", ".pt", ".bin")
_KERAS = (".h5", ".hdf5")
SUFFIXES = (".safetensors", *_TORCH, *_KERAS)

# The weights in a repository on the Hub, and in an exported folder.
FOLDER_FILE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Tensors:
    """Content of a weight file.

    Attributes:
      arrays: tensors by their names in the file; Keras's as "<layer>/<variable>".
      metadata: metadata of a safetensors file; {} for the other formats, which have none.
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def read_tensors(path: pathlib.Path) -> Tensors:
    """Reads a weight file in the format that its suffix says, without running code from it.

    Raises:
      UserError: the file is missing or damaged, has another format, or refers to code.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {found}, expected a weight file ({', '.join(SUFFIXES)})")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return Tensors(*safetensors_file.read(path))
    if suffix in _TORCH:
        return Tensors(torch_file.read(path), {})
    if suffix in _KERAS:
        return Tensors(keras_file.read(path), {})
    raise UserError(f"{path}: suffix {suffix!r}, expected one of {', '.join(SUFFIXES)}")


def locate(location: str) -> pathlib.Path:
    """Returns the path of a weight file; one on the Hub is downloaded unless it is cached.

    Raises:
      UserError: the location is malformed or is a web address, or the file cannot be found or
        downloaded.
    """
    if location.startswith("hf:"):
        match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([^:@]+))?(?::([^:]+))?", location)
        if not match:
            raise UserError(f"{location!r}: expected hf:OWNER/NAME[@REVISION][:FILE]")
        return hub.fetch(match[1], match[3] or FOLDER_FILE, match[2])
    if location.startswith("package:"):
        return _in_package(location.removeprefix("package:"))
    if location.startswith(("https://", "http://")):
        raise UserError(
            f"{location}: web addresses are not downloaded: download the file, and pass it with "
            "--config.model.weights=FILE (convert: --weights=FILE)"
        )
    path = _in_bucket(location) if bucket_urls.is_remote(location) else pathlib.Path(location)
    path = pathlib.Path(os.path.expanduser(path))
    reason = "no such file"
    try:
        if location and (path / FOLDER_FILE).is_file():
            return path / FOLDER_FILE
        if location and path.is_file():
            return path
    except OSError as error:  # a name that is too long, or a folder that may not be read
        reason = error.strerror
    raise UserError(
        f"{location!r}: {reason}, expected a path, hf:OWNER/NAME[@REVISION][:FILE] or package:NAME"
    )


def _in_bucket(url: str) -> pathlib.Path:
    """Copies a weight file, with the `config.json` beside it, or a folder."""
    if "" not in buckets.list_files(url):
        return pathlib.Path(remote.local(url))
    folder, _, name = bucket_urls.normalised(url).rpartition("/")
    return remote.local_copies([f"{folder}/{name}", f"{folder}/config.json"])[0]


def _in_package(name: str) -> pathlib.Path:
    """The only weight file of an installed package, which is not imported."""
    if not re.fullmatch(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?", name):
        raise UserError(f"'package:{name}': expected package:NAME, the name of a package on PyPI")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"package {name} is not installed: pip install {name}") from error
    # A .pth file at the top of site-packages is Python's own: it extends the import path.
    files = [
        file
        for file in distribution.files or ()
        if file.suffix.lower() in SUFFIXES and len(file.parts) > 1
    ]
    if len(files) != 1:
        found = ", ".join(map(str, files)) or "none"
        raise UserError(
            f"package {name}: weight files in it: {found}; expected one ({', '.join(SUFFIXES)})"
        )
    path = pathlib.Path(distribution.locate_file(files[0]))
    if not path.is_file():
        raise UserError(f"{path}: no such file, package {name} is incomplete: pip install {name}")
    return path
