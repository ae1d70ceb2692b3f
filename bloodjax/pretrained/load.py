"""Loading pretrained weights: find the file, read its tensors, and merge them into a network.

`load_weights` returns `Weights`, which know the architecture that they are weights of; their
methods build the network and fill its variables.
"""

from __future__ import annotations

import dataclasses
import numbers
import os
import pathlib
import re
from collections.abc import Mapping

import flax.traverse_util
import jax
import numpy as np
from jaxtyping import PyTree

from bloodjax import models
from bloodjax.errors import UserError
from bloodjax.models import Architecture
from bloodjax.models.head import Network
from bloodjax.pretrained import bloodjax_file, hub, name_maps, pretrained_cfg, readers
from bloodjax.pretrained.merge import merge
from bloodjax.pretrained.pretrained_cfg import DEFAULTS, PretrainedCfg

# Value of `config.model.weights` that stands for the network's default weights.
DEFAULT = "imagenet"
# Modules that a new head replaces: the classifier, and VGG's dense layers before it.
_HEAD = ("head", "backbone/top_0", "backbone/top_1")
_CLASSIFIER = "params/head/logits/bias"


@dataclasses.dataclass(frozen=True)
class Weights:
    """Pretrained weights and the network that they are of.

    Attributes:
      architecture: the network.
      pretrained_cfg: origin, preprocessing and licence. On the Hub, `location` names the commit.
      arrays: tensors by their names in the file.
    """

    architecture: Architecture
    pretrained_cfg: PretrainedCfg
    arrays: Mapping[str, np.ndarray]

    @property
    def num_classes(self) -> int:
        """Number of classes of the classifier; 0 if the weights have none."""
        name_map = self._name_map()
        biases = [
            array
            for name, array in self.arrays.items()
            if name_maps.map_name(name, name_map)[0] == _CLASSIFIER
        ]
        return biases[0].size if biases else 0

    def backbone(self) -> PyTree:
        """Returns the backbone's variables, without VGG's dense layers.

        Returns:
          `{"params": {"backbone": ...}, "batch_stats": {"backbone": ...}}`, as
          `models.init_variables` accepts them.

        Raises:
          UserError: the weights are not this network's.
        """
        return self._merged(_backbone(_shapes(self.linear(1))), _HEAD)

    def classifier(self) -> tuple[Network, PyTree]:
        """Returns the network as published, with its linear classifier, and its variables.

        If the weights have no classifier, the variables have none either.

        Raises:
          UserError: the weights are not this network's.
        """
        classes = self.num_classes
        model = self.linear(classes or 1, top=classes > 0)
        shapes = _shapes(model)
        return model, self._merged(shapes if classes else _backbone(shapes))

    def model(self, num_classes: int, *, replace_head: bool = False) -> tuple[Network, PyTree]:
        """Returns a network with a linear head, and its variables.

        Args:
          num_classes: number of logits.
          replace_head: initialise the head at random instead of taking it from the weights.

        Raises:
          UserError: the weights are not this network's, or are of another number of classes.
        """
        own = self.num_classes
        if not replace_head and own not in (0, num_classes):
            raise UserError(
                f"{self.pretrained_cfg.location}: weights of {own} classes, expected "
                f"num_classes={own}, or replace_head=True for a new classifier"
            )
        model = self.linear(num_classes, top=not replace_head)
        if not replace_head:
            return model, self._merged(_shapes(model))
        return model, models.init_variables(model, given=self.backbone())

    def linear(self, num_classes: int, *, top: bool = False) -> Network:
        """Builds the network, in the variant of the weights, with a linear head."""
        return self.architecture.linear(num_classes, variant=self.pretrained_cfg.variant, top=top)

    def _merged(self, variables: PyTree, replace: tuple[str, ...] = ()) -> PyTree:
        location = self.pretrained_cfg.location
        return merge(self.arrays, self._name_map(), variables, location=location, replace=replace)

    def _name_map(self) -> name_maps.NameMap:
        return name_maps.name_map(self.architecture, self.pretrained_cfg.naming)


def load_weights(name: str, weights: str, variant: str = "") -> Weights:
    """Reads a network's pretrained weights.

    Args:
      name: name of the network, or an alias.
      weights: "imagenet" for the network's default weights, or a location that `readers.locate`
        accepts.
      variant: variant of the network; by default the one that the weights were trained with.

    Raises:
      UserError: the name is unknown, the network has no default weights, or the weights cannot be
        found or read; or they may be of several variants, and nothing says which.
    """
    architecture = models.architecture(name)
    default = DEFAULTS.get(architecture.name)
    if weights == DEFAULT:
        if default is None:
            raise UserError(
                f"{architecture.name} has no default weights: expected config.model.weights=FILE, "
                "or empty to train from scratch"
            )
        pretrained_cfg.check_default(name)
        weights = default.location
    path = _locate(architecture, weights, variant)
    tensors = readers.read_tensors(path)
    cfg = bloodjax_file.parse_metadata(weights, architecture, tensors.metadata)
    if cfg is None and default and _pin(weights, "-") == _pin(default.location, "-"):
        cfg = default
    if cfg is None:
        naming = _detect_naming(architecture, tensors.arrays)
        stated = _config_on_hub(weights)
        if stated:
            cfg = pretrained_cfg.from_timm(architecture, weights, naming, stated)
        else:
            cfg = pretrained_cfg.beside(architecture, weights, naming, path)
        if cfg is None:
            # timm's name of a network with Google's padding says the variant, too.
            if not variant and pretrained_cfg.is_of_google(name):
                variant = "tf" if pretrained_cfg.ambiguous(architecture, naming) else ""
            cfg = pretrained_cfg.inferred(architecture, weights, naming, variant)
            if own := pretrained_cfg.keras_normalization(tensors.arrays):
                cfg = dataclasses.replace(cfg, mean=own[0], std=own[1])
    cfg = dataclasses.replace(
        cfg, location=_pin(weights, hub.revision(path)), variant=variant or cfg.variant
    )
    return Weights(architecture, cfg, tensors.arrays)


def create_model(
    name: str,
    weights: str | os.PathLike[str] | None = None,
    num_classes: int = 1000,
    *,
    replace_head: bool = False,
    variant: str = "",
) -> tuple[Network, PyTree]:
    """Creates a network with a linear head, and its variables.

    Run it with `model.apply(variables, x, train=False)`.

    Args:
      name: name of the network, as `bloodjax.list_models` returns it, or an alias such as Keras's
        `ResNet50`.
      weights: "imagenet" (the network's default weights), a file, `hf:OWNER/NAME[@REVISION][:FILE]`
        or `package:NAME`; None for random weights from a fixed seed.
      num_classes: number of logits.
      replace_head: initialise the classifier at random instead of taking it from the weights;
        necessary if the weights are of another number of classes.
      variant: library whose padding and epsilons the network has, such as "timm" or "tf"; by
        default the one that the weights were trained with.

    Returns:
      The module, and `{"params": ..., "batch_stats": ...}` in float32. The module maps normalised
      float32 RGB images [batch, height, width, 3] to float32 logits [batch, num_classes].

    Raises:
      UserError: the name is unknown; the weights cannot be found or read; or they are not this
        network's, or are of another number of classes and `replace_head` is False; or
        `num_classes` is below 1.
    """
    if not (isinstance(num_classes, numbers.Integral) and num_classes >= 1):
        raise UserError(f"num_classes is {num_classes!r}, expected an integer of at least 1")
    if weights is None:
        return models.random_model(name, num_classes, variant=variant)
    return load_weights(name, os.fspath(weights), variant).model(
        num_classes, replace_head=replace_head
    )


def _locate(architecture: Architecture, weights: str, variant: str) -> pathlib.Path:
    """`readers.locate`; where a file is to be fetched by hand, the error says all flags to set."""
    try:
        return readers.locate(weights)
    except UserError as error:
        default = DEFAULTS.get(architecture.name)
        is_default = default and _pin(weights, "-") == _pin(default.location, "-")
        stated = default.variant if is_default else ""
        variant = variant or stated or pretrained_cfg.stated_variant(architecture, weights)
        if "=FILE" not in str(error) or not pretrained_cfg.ambiguous(architecture, "timm"):
            raise
        choice = variant or "tf or timm, as the weights are"
        raise UserError(
            f"{error} and --config.model.variant={choice} (convert: --variant)"
        ) from error


def _detect_naming(architecture: Architecture, arrays: Mapping[str, np.ndarray]) -> str:
    """The naming whose map matches the most tensors to variables; the merge is strict later."""
    candidates = {
        naming: name_maps.name_map(architecture, naming)
        for naming in name_maps.namings(architecture.family)
    }
    if not candidates:
        return bloodjax_file.FORMAT  # the merge then lists what does not match
    shapes = _shapes(architecture.linear(1, top=True))
    ours = flax.traverse_util.flatten_dict(shapes, sep="/")

    def matches(naming: str) -> int:
        name_map = candidates[naming]
        return sum(name_maps.map_name(tensor, name_map)[0] in ours for tensor in arrays)

    return max(candidates, key=matches)


def _config_on_hub(location: str) -> pathlib.Path | None:
    """The `config.json` in the weights' repository on the Hub, if there is one."""
    match = re.match(r"hf:([^@:]+)(?:@([^:]+))?", location)
    try:
        return hub.fetch(match[1], "config.json", match[2]) if match else None
    except UserError:
        return None


def _pin(location: str, revision: str) -> str:
    """A location on the Hub with its revision replaced; other locations unchanged."""
    match = re.fullmatch(r"(hf:[^@:]+)(?:@[^:]+)?(:.+)?", location)
    return f"{match[1]}@{revision}{match[2] or ''}" if match and revision else location


def _shapes(model: Network) -> PyTree:
    return jax.eval_shape(lambda: models.init_variables(model))


def _backbone(variables: PyTree) -> PyTree:
    return {
        collection: {name: module for name, module in modules.items() if name == "backbone"}
        for collection, modules in variables.items()
    }
