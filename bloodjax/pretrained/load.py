"""A run's initial weights: the source that its config names, merged into its network."""

from __future__ import annotations

from jaxtyping import PyTree

from bloodjax.errors import UserError
from bloodjax.models import registry
from bloodjax.models.head import Network
from bloodjax.pretrained import readers, rules
from bloodjax.pretrained.catalogue import DEFAULTS, Source
from bloodjax.pretrained.merge import merge

# The value of `config.model.weights` that stands for the network's default source.
IMAGENET = "imagenet"
# What a new head takes the place of: the classifier, and VGG's dense layers before it.
HEAD = ("head", "backbone/top_0", "backbone/top_1")


def source(name: str, weights: str, flavour: str = "") -> Source:
    """The source that `weights` stands for.

    Args:
      name: of the network.
      weights: "imagenet", or a location as `readers.locate` takes it.
      flavour: of the network; for a location, by default that of the network's default source.

    Raises:
      UserError: the network has no default source.
    """
    default = DEFAULTS.get(name)
    if weights == IMAGENET or (default and weights == default.location):
        if default is None:
            raise UserError(
                f"{name} has no default weights: expected config.model.weights=FILE, or empty to "
                "train from scratch"
            )
        return default
    known = default or Source("", "", registry.flavours(name)[0])
    # Which of the family's namings the file uses is found when it is read.
    return Source(weights, "", flavour or known.flavour, known.mean, known.std, known.size)


def load(name: str, weights: Source, variables: PyTree, replace: tuple[str, ...] = HEAD) -> PyTree:
    """`variables` of network `name` with the source's weights in it.

    Args:
      name: of the network.
      weights: from `source`.
      variables: `{"params": ..., "batch_stats": ...}`.
      replace: what keeps its own variables; see `merge.merge`.

    Raises:
      UserError: the weights cannot be had or read, or are not this network's.
    """
    tensors = readers.read(readers.locate(weights.location))
    family = registry.family(name)
    naming = weights.rules or _naming(family, name, tensors.arrays)
    return merge(
        tensors.arrays,
        rules.table(family, naming, name),
        variables,
        source=weights.location,
        replace=replace,
    )


def _naming(family: str, name: str, arrays: dict) -> str:
    """The naming whose rules know the most of the tensors; the merge is strict about the rest."""
    return max(
        rules.names(family),
        key=lambda naming: sum(
            rules.knows(rules.table(family, naming, name), tensor) for tensor in arrays
        ),
    )


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
    known = source(name, weights)
    model, variables = registry.create_model(
        name, num_classes, flavour=known.flavour, top=not replace_head
    )
    return model, load(name, known, variables, replace=HEAD if replace_head else ())
