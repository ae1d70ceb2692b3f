"""The door to h5py: Keras's weights, in its older layout (`.h5`) and in Keras 3's (`.weights.h5`).

Either way the tensors come out as `<layer's name>/<variable's name>`: conv1/kernel, conv1_bn/gamma.

The older layout, that of `keras.applications`' published files, lists both names in attributes.
Keras 3 numbers the variables under their layer's class (layers/conv2d_7/vars/0) and leaves the
layer's name in an attribute of `vars`; the variables' names follow from the class.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

import h5py
import jax.numpy as jnp
import numpy as np

from bloodjax.errors import UserError

# In the order that a layer of the class makes its variables: Keras 3's, by number.
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
# Without `scale` a batch norm has no gamma; `keras.applications` has none without `center`.
_BATCH_NORM_UNSCALED = _BATCH_NORM[1:]

# Keras 1's names, as in block1_conv1_W_1:0, which some published files still carry.
_KERAS_1 = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a Keras file by `<layer>/<variable>`.

    Raises:
      UserError: the file cannot be read, is damaged, or is in neither layout.
    """
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
        # h5py says truncation and damage with any of these.
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{path}: truncated or not a Keras file ({reason}), expected weights that Keras saved"
        ) from error
    if not arrays:
        raise UserError(f"{path}: holds no tensors, expected weights that Keras saved")
    return arrays


def _named(root: h5py.Group, path: pathlib.Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """The older layout's datasets."""
    for layer in _texts(root, "layer_names"):
        group = root[layer]
        weights = _texts(group, "weight_names")
        variables = [_variable(weight) for weight in weights]
        # A whole network as a layer: its variables carry its layers' names, below its own.
        nested = len(set(variables)) < len(variables)
        for weight, variable in zip(weights, variables, strict=True):
            inner = weight.split("/")[-2] if nested and "/" in weight else layer
            yield f"{inner}/{variable}", _dataset(group[weight])


def _variable(weight: str) -> str:
    """The bare name in "conv1/kernel:0" or, from Keras 1, "conv1_W_1:0"."""
    bare = weight.rpartition("/")[2].partition(":")[0]
    match = re.fullmatch(r".*_(W|b|gamma|beta|running_mean|running_std)(_\d+)?", bare)
    return _KERAS_1.get(match[1], match[1]) if match else bare


def _numbered(file: h5py.File, path: pathlib.Path) -> Iterator[tuple[str, h5py.Dataset]]:
    """Keras 3's datasets."""
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
            # Numbers under classes are not enough: which layer is conv2d_7?
            raise UserError(
                f"{path}: {inside} has no layer's name, expected weights that a newer Keras saved"
            )
        layer = _text(group.attrs["name"])
        kind = re.sub(r"_\d+$", "", inside.split("/")[-2]) if "/" in inside else ""
        variables = _VARIABLES.get(kind, ())
        if kind == "batch_normalization" and len(group) == len(_BATCH_NORM_UNSCALED):
            variables = _BATCH_NORM_UNSCALED
        for key in sorted(group, key=int):
            # Of a class that we do not know, the number stays; the merge then names it.
            variable = variables[int(key)] if int(key) < len(variables) else key
            yield f"{layer}/{variable}", _dataset(group[key])


def _dataset(item: h5py.Dataset | h5py.Group) -> h5py.Dataset:
    if not isinstance(item, h5py.Dataset):
        raise TypeError(f"{item.name} is no array")
    return item


def _array(dataset: h5py.Dataset) -> np.ndarray:
    array = np.asarray(dataset[()])
    if dataset.attrs.get("dtype") == "bfloat16":
        # HDF5 has no such number, so Keras marks what it writes in its stead.
        return array.view(jnp.bfloat16) if array.dtype.itemsize == 2 else array.astype(jnp.bfloat16)
    return array


def _texts(group: h5py.Group, attribute: str) -> list[str]:
    """A list of names; Keras cuts one too long for an attribute into names0, names1, ..."""
    if attribute in group.attrs:
        return [_text(value) for value in group.attrs[attribute]]
    texts, part = [], 0
    while f"{attribute}{part}" in group.attrs:
        texts += [_text(value) for value in group.attrs[f"{attribute}{part}"]]
        part += 1
    return texts


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
