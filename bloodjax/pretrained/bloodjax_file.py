"""bloodjax's own weight files: safetensors by variable path, with the preprocessing as metadata.

Safetensors metadata is text. The keys are `format` ("bloodjax"), `model` (canonical name),
`num_classes` ("0" without a classifier), `source` (where the weights came from) and the fields of
`pretrained_cfg.PretrainedCfg`; numbers and lists are JSON. Older files call `variant` `flavour`,
and may call the model by an older name.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from jaxtyping import PyTree

from bloodjax.errors import UserError
from bloodjax.models.registry import Architecture, canonical_name
from bloodjax.pretrained import safetensors_file
from bloodjax.pretrained.merge import flatten
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg

FORMAT = "bloodjax"
_RENAMED = {"flavour": "variant"}
# A file does not store its own location, and its tensors are always named as `FORMAT` says.
_STORED = [
    field.name
    for field in dataclasses.fields(PretrainedCfg)
    if field.name not in ("location", "naming")
]


def write(
    path: pathlib.Path, name: str, num_classes: int, cfg: PretrainedCfg, variables: PyTree
) -> None:
    """Writes a weight file atomically.

    Args:
      path: file to write, *.safetensors.
      name: name of the network.
      num_classes: number of classes of its classifier; 0 without a classifier.
      cfg: origin, preprocessing and licence of the weights.
      variables: `{"params": ..., "batch_stats": ...}`.

    Raises:
      UserError: `path` cannot be written, or `name` is unknown.
    """
    stored = {key: getattr(cfg, key) for key in _STORED}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in stored.items()}
    metadata = {"format": FORMAT, "model": canonical_name(name), "num_classes": str(num_classes)}
    metadata |= {"source": cfg.location, **texts}
    safetensors_file.write(path, flatten(variables), metadata)


def parse_metadata(
    location: str, architecture: Architecture, metadata: Mapping[str, str]
) -> PretrainedCfg | None:
    """Returns the `PretrainedCfg` in a file's metadata; None if bloodjax did not write the file.

    Args:
      location: location of the file, for the result and for errors.
      architecture: network that the weights must be of.
      metadata: metadata of the safetensors file.

    Raises:
      UserError: the weights are of another network, or the metadata are damaged.
    """
    if metadata.get("format") != FORMAT:
        return None
    if not _is_named(architecture.name, metadata.get("model", "")):
        raise UserError(
            f"{location}: contains weights of {metadata.get('model')}, expected {architecture.name}"
        )
    try:
        texts = {_RENAMED.get(key, key): text for key, text in metadata.items()}
        values = {key: texts[key] for key in _STORED}
        values |= {key: json.loads(texts[key]) for key in ("mean", "std", "size")}
        values |= {key: tuple(map(float, values[key])) for key in ("mean", "std")}
        return PretrainedCfg(location, FORMAT, **values)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{location}: damaged metadata ({error!r}), expected those that bloodjax.convert writes"
        ) from error


def _is_named(name: str, stored: str) -> bool:
    try:
        return canonical_name(stored) == name
    except UserError:
        return False
