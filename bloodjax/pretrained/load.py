"""A network's initial weights: the source that a config or a caller names, merged strictly."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping

import flax.traverse_util
import jax
import numpy as np
from jaxtyping import PyTree

from bloodjax.errors import UserError
from bloodjax.models import registry
from bloodjax.models.head import Network
from bloodjax.pretrained import bloodjax_file, hub, name_maps, readers, terms
from bloodjax.pretrained.merge import merge
from bloodjax.pretrained.pretrained_cfg import DEFAULTS, PretrainedCfg

# The value of `config.model.weights` that stands for the network's default source.
DEFAULT = "imagenet"
# What a new head takes the place of: the classifier, and VGG's dense layers before it.
HEAD = ("head", "backbone/top_0", "backbone/top_1")
_CLASSIFIER = "params/head/logits/bias"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights as their source has them.

    Attributes:
      name: of the network that they are for.
      source: where they come from, and their terms; its `location` names one revision for good
        where the source has revisions.
      arrays: by the source's names.
    """

    name: str
    source: PretrainedCfg
    arrays: Mapping[str, np.ndarray]

    @property
    def num_classes(self) -> int:
        """Of their classifier; 0 where they have none."""
        logits = [array for key, array in self.arrays.items() if self._path(key) == _CLASSIFIER]
        return logits[0].size if logits else 0

    def into(self, variables: PyTree, replace: tuple[str, ...] = ()) -> PyTree:
        """`variables` with these weights in place of its own.

        Args:
          variables: `{"params": ..., "batch_stats": ...}`, arrays or shapes.
          replace: what keeps its own variables; see `merge.merge`.

        Raises:
          UserError: these are not the network's weights.
        """
        return merge(
            self.arrays, self._table, variables, source=self.source.location, replace=replace
        )

    @property
    def _table(self) -> name_maps.Table:
        return name_maps.table(registry.family(self.name), self.source.rules, self.name)

    def _path(self, key: str) -> str | None:
        return name_maps.target(key, self._table)[0]


def read(name: str, weights: str, flavour: str = "") -> Weights:
    """The weights that `weights` stands for.

    Args:
      name: of the network.
      weights: "imagenet", the network's default source; or a location as `readers.locate` takes it.
      flavour: of the network; by default what the source says, or what its naming suggests.

    Raises:
      UserError: the network has no default source, or the weights cannot be had or read.
    """
    default = DEFAULTS.get(name)
    if weights == DEFAULT:
        if default is None:
            raise UserError(
                f"{name} has no default weights: expected config.model.weights=FILE, or empty to "
                "train from scratch"
            )
        weights = default.location
    path = readers.locate(weights)
    tensors = readers.read(path)
    source = bloodjax_file.source(weights, name, tensors.metadata)
    if source is None and default and _pinned(weights, "-") == _pinned(default.location, "-"):
        source = default
    if source is None:
        naming = _naming(name, tensors.arrays)
        config = _beside(weights)
        source = (
            terms.from_timm(name, weights, naming, config)
            if config
            else terms.assumed(name, weights, naming, default)
        )
    source = dataclasses.replace(
        source,
        location=_pinned(weights, hub.revision(path)),
        flavour=flavour or source.flavour,
    )
    return Weights(name, source, tensors.arrays)


def _naming(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    """The naming whose rules lead the most tensors to a variable; the merge is strict later."""
    family = registry.family(name)
    tables = {naming: name_maps.table(family, naming, name) for naming in name_maps.names(family)}
    if not tables:
        return bloodjax_file.FORMAT  # the merge says what does not fit
    ours = flax.traverse_util.flatten_dict(_shapes(registry.linear(name, 1, top=True)), sep="/")

    def placed(naming: str) -> int:
        return sum(name_maps.target(tensor, tables[naming])[0] in ours for tensor in arrays)

    return max(tables, key=placed)


def _beside(location: str) -> pathlib.Path | None:
    """The `config.json` in the same repository of the Hub, where there is one."""
    match = re.match(r"hf:([^@:]+)(?:@([^:]+))?", location)
    try:
        return hub.fetch(match[1], "config.json", match[2]) if match else None
    except UserError:
        return None


def _pinned(location: str, revision: str) -> str:
    """The location, naming the revision that it was found to stand for."""
    match = re.fullmatch(r"(hf:[^@:]+)(?:@[^:]+)?(:.+)?", location)
    return f"{match[1]}@{revision}{match[2] or ''}" if match and revision else location


def backbone(weights: Weights) -> PyTree:
    """`{"params": {"backbone": ...}, "batch_stats": {"backbone": ...}}` of the weights.

    Raises:
      UserError: these are not the network's weights.
    """
    model = registry.build(weights.name, 1, flavour=weights.source.flavour)
    return weights.into(_backbone(_shapes(model)), HEAD)


def classifier(weights: Weights) -> tuple[Network, PyTree]:
    """The network that the weights are of, linear classifier and all, and its variables.

    Without a classifier in the weights, the variables have none either.

    Raises:
      UserError: these are not the network's weights.
    """
    flavour, classes = weights.source.flavour, weights.num_classes
    model = registry.linear(weights.name, classes or 1, flavour=flavour, top=classes > 0)
    shapes = _shapes(model)
    return model, weights.into(shapes if classes else _backbone(shapes))


def create_model(
    name: str, weights: str | None = None, num_classes: int = 1000, *, replace_head: bool = False
) -> tuple[Network, PyTree]:
    """A network with a linear head, and its variables: `model.apply(variables, x, train=False)`.

    Args:
      name: one of `bloodjax.models.names()`.
      weights: "imagenet" (the network's default source), a file, `hf:OWNER/NAME`, `package:NAME`,
        or None for random weights, the same ones every time.
      num_classes: number of logits.
      replace_head: keep a random classifier in place of the source's.

    Returns:
      The module, and `{"params": ..., "batch_stats": ...}`. It maps normalised float32 images
      [batch, height, width, 3] to logits [batch, num_classes].

    Raises:
      UserError: `name` is not known; the weights cannot be had or read, or are not this network's,
        such as those of another number of classes without `replace_head`.
    """
    if weights is None:
        return registry.create_model(name, num_classes)
    registry.family(name)  # an unknown name is the first thing to say
    loaded = read(name, weights)
    model = registry.linear(name, num_classes, flavour=loaded.source.flavour, top=not replace_head)
    shapes = _shapes(model)
    if not replace_head:
        return model, loaded.into(shapes)
    return model, registry.draw(model, given=loaded.into(_backbone(shapes), HEAD))


def _shapes(model: Network) -> PyTree:
    return jax.eval_shape(lambda: registry.draw(model))


def _backbone(variables: PyTree) -> PyTree:
    return {
        collection: {name: module for name, module in modules.items() if name == "backbone"}
        for collection, modules in variables.items()
    }
