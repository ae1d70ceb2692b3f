"""Reader of Keras's weight files; the only module that imports h5py.

It reads the legacy format (`.h5`) and Keras 3's (`.weights.h5`), and names tensors in both
`<layer>/<variable>`, such as conv1/kernel and conv1_bn/gamma.

The legacy format, in which `keras.applications` publishes its weights, stores both names as
attributes. Keras 3 numbers the variables under their layer's class (layers/conv2d_7/vars/0) and
stores the layer's name as an attribute of `vars`; the variables' names follow from the class.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from bloodjax.errors import UserError

try:
    import h5py
except ImportError:  # part of the extra [keras]; `read` raises an error that says so
    h5py = None

# Layer class -> its variables in the order of creation, which Keras 3 numbers them in.
_BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel", "bias"),
    "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
    "dense": ("kernel", "bias"),
    "batch_normalization": _BATCH_NORM,
    "layer_normalization": ("gamma", "beta"),
    "layer_scale": ("gamma",),
    "normalization": ("mean", "variance", "count"),
}
# With `scale=False` there is no gamma. `keras.applications` never uses `center=False`.
_BATCH_NORM_UNSCALED = _BATCH_NORM[1:]

# Keras 1's names, as in block1_conv1_W_1:0, which some published files still use.
_KERAS_1 = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a Keras file.

    Returns:
      Arrays by `<layer>/<variable>`.

    Raises:
      UserError: h5py is not installed, or the file cannot be read, is damaged, or is in neither
        format.
    """
    if h5py is None:
        raise UserError(
            f"{path}: reading a Keras file needs h5py, which is not installed: "
            "pip install 'bloodjax[keras]'"
        )
    try:
        with h5py.File(path, "r") as file:
            root = file.get("model_weights", file)
            numbered = "layer_names" not in root.attrs and "layer_names0" not in root.attrs
            found = _numbered(file, path) if numbered else _named(root, path)
            arrays: dict[str, np.ndarray] = {}
            for name, dataset in found:
                if name in arrays:
                    raise UserError(f"{path}: two tensors are called {name}, expected one")
                arrays[name] = _array(dataset)
    except UserError:
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        # h5py reports truncated and damaged files with any of these.
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: truncated or not a Keras file ({reason}), expected weights that Keras saved"
        ) from error
    if not arrays:
        raise UserError(f"{path}: contains no tensors, expected weights that Keras saved")
    return arrays


def _named(root: h5py.Group, path: pathlib.Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yields name and dataset of each variable in the legacy format."""
    for layer in _texts(root, "layer_names"):
        group = root[layer]
        weights = _texts(group, "weight_names")
        variables = [_variable(weight) for weight in weights]
        # A nested model: its variables' names contain the names of its own layers.
        nested = len(set(variables)) < len(variables)
        for weight, variable in zip(weights, variables, strict=True):
            inner = weight.split("/")[-2] if nested and "/" in weight else layer
            yield f"{inner}/{variable}", _dataset(group[weight])


def _variable(weight: str) -> str:
    """Extracts "kernel" from "conv1/kernel:0" or, in Keras 1, from "conv1_W_1:0"."""
    bare = weight.rpartition("/")[2].partition(":")[0]
    match = re.fullmatch(r".*_(W|b|gamma|beta|running_mean|running_std)(_\d+)?", bare)
    return _KERAS_1.get(match[1], match[1]) if match else bare


def _numbered(file: h5py.File, path: pathlib.Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yields name and dataset of each variable in Keras 3's format."""
    groups: list[h5py.Group] = []
    file.visititems(
        lambda name, item: (
            groups.append(item)
            if isinstance(item, h5py.Group) and name.rpartition("/")[2] == "vars"
            else None
        )
    )
    for group in groups:
        inside = group.name.strip("/")
        if not len(group) or inside.startswith(("optimizer/", "metrics/")):
            continue
        if "name" not in group.attrs:
            # The number does not identify the layer: which one is conv2d_7?
            raise UserError(
                f"{path}: {inside} has no layer name, expected weights that a newer Keras saved"
            )
        layer = _text(group.attrs["name"])
        layer_class = re.sub(r"_\d+$", "", inside.split("/")[-2]) if "/" in inside else ""
        variables = _VARIABLES.get(layer_class, ())
        if layer_class == "batch_normalization" and len(group) == len(_BATCH_NORM_UNSCALED):
            variables = _BATCH_NORM_UNSCALED
        for key in sorted(group, key=int):
            # For an unknown class the number is kept, and the merge reports the variable.
            variable = variables[int(key)] if int(key) < len(variables) else key
            yield f"{layer}/{variable}", _dataset(group[key])


def _dataset(item: h5py.Dataset | h5py.Group) -> h5py.Dataset:
    if not isinstance(item, h5py.Dataset):
        raise TypeError(f"{item.name} is not an array")
    return item


def _array(dataset: h5py.Dataset) -> np.ndarray:
    array = np.asarray(dataset[()])
    if dataset.attrs.get("dtype") == "bfloat16":
        # HDF5 has no bfloat16; Keras stores the raw bytes and marks them with an attribute.
        return array.view(jnp.bfloat16) if array.dtype.itemsize == 2 else array.astype(jnp.bfloat16)
    return array


def _texts(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names; Keras splits one that an attribute cannot hold into names0, names1, ..."""
    if attribute in group.attrs:
        return [_text(value) for value in group.attrs[attribute]]
    texts, part = [], 0
    while f"{attribute}{part}" in group.attrs:
        texts += [_text(value) for value in group.attrs[f"{attribute}{part}"]]
        part += 1
    return texts


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
