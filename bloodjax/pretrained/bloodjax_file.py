"""Our own files of weights: safetensors by our variables' paths, with all that their use needs.

The metadata is text, as safetensors has it: `format` ("bloodjax"), `model`, `num_classes` (0 where
there is no classifier), and the fields of `pretrained_cfg.PretrainedCfg`, numbers and lists as JSON. `source`
is where the weights came from.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from jaxtyping import PyTree

from bloodjax.errors import UserError
from bloodjax.pretrained import safetensors_file
from bloodjax.pretrained.merge import flatten
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg

FORMAT = "bloodjax"
# Where the file lies is no property of its content, and its naming is `FORMAT`.
_TERMS = [f.name for f in dataclasses.fields(PretrainedCfg) if f.name not in ("location", "rules")]


def write(
    path: pathlib.Path, name: str, num_classes: int, source: PretrainedCfg, variables: PyTree
) -> None:
    """Writes the file, whole or not at all.

    Args:
      path: ends in .safetensors.
      name: of the network.
      num_classes: of its classifier; 0 for none.
      source: where the weights come from, and their terms.
      variables: `{"params": ..., "batch_stats": ...}`.

    Raises:
      UserError: `path` cannot be written to.
    """
    terms = {term: getattr(source, term) for term in _TERMS}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in terms.items()}
    metadata = {"format": FORMAT, "model": name, "num_classes": str(num_classes)}
    metadata |= {"source": source.location, **texts}
    safetensors_file.write(path, flatten(variables), metadata)


def source(location: str, name: str, metadata: Mapping[str, str]) -> PretrainedCfg | None:
    """The terms that a file's metadata states; None where the file is not ours.

    Args:
      location: of the file.
      name: of the network that the weights are wanted for.
      metadata: of the file.

    Raises:
      UserError: the weights are another network's, or the metadata are damaged.
    """
    if metadata.get("format") != FORMAT:
        return None
    if metadata.get("model") != name:
        raise UserError(f"{location}: holds weights of {metadata.get('model')}, expected {name}")
    try:
        texts = {term: metadata[term] for term in _TERMS}
        numbers = {term: json.loads(texts[term]) for term in ("mean", "std", "size")}
        numbers |= {term: tuple(map(float, numbers[term])) for term in ("mean", "std")}
        return PretrainedCfg(location, FORMAT, **(texts | numbers))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{location}: damaged metadata ({error!r}), expected those that bloodjax.convert writes"
        ) from error
