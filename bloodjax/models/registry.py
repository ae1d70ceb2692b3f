"""Registry of networks: from a name to an architecture, a network and its initial variables.

Names are timm's: `resnet50`, `convnext_base`, `mobilenetv1_100`. Wherever a name is taken, Keras's
(`ResNet50`, `ConvNeXtBase`, `MobileNet`) and the older ones of bloodjax (`resnet_50`) are aliases.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import functools
import types
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from bloodjax.errors import UserError
from bloodjax.models import (
    convnext,
    densenet,
    efficientnet,
    inception,
    mobilenet,
    resnet,
    simple_cnn,
    vgg,
)
from bloodjax.models.backbone import Backbone
from bloodjax.models.head import Head, Network

# A family's module defines NETWORKS (name -> fields of the backbone), VARIANTS (reference
# implementation -> the fields that differ in it; the first is the default) and MIN_IMAGE_SIZE (the
# side in pixels below which a map would become empty). A variant may have one of its own, in
# MIN_IMAGE_SIZES.
_FAMILIES: tuple[tuple[types.ModuleType, type[Backbone]], ...] = (
    (mobilenet, mobilenet.MobileNet),
    (inception, inception.InceptionV3),
    (vgg, vgg.VGG),
    (resnet, resnet.ResNet),
    (densenet, densenet.DenseNet),
    (convnext, convnext.ConvNeXt),
    (efficientnet, efficientnet.EfficientNet),
    (simple_cnn, simple_cnn.SimpleCNN),
)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network's definition, from which networks of any number of classes are built.

    Attributes:
      name: canonical name.
      family: name of the family's module, such as "efficientnet".
      backbone: class of the backbone.
      fields: fields of the backbone that define this network.
      variants: reference implementation, such as "timm" or "keras" -> the fields that differ in it
        (padding, epsilons, ...); the first is the default.
      min_image_size: smallest side of the images in pixels.
      min_image_sizes: the same of variants that have another.
    """

    name: str
    family: str
    backbone: type[Backbone]
    fields: Mapping[str, object]
    variants: Mapping[str, Mapping[str, object]]
    min_image_size: int
    min_image_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def smallest_images(self, variant: str) -> int:
        """Smallest side of the images of a variant in pixels; "" is the default."""
        return self.min_image_sizes.get(variant, self.min_image_size)

    @property
    def stages(self) -> int:
        """Number of the backbone's stages, at whose ends it calls `end_stage`."""
        return self.backbone(**self.fields).num_stages

    def build(
        self,
        num_classes: int,
        *,
        variant: str = "",
        top: bool = False,
        drop_path: float = 0.0,
        remat: bool = False,
        axis_name: str | None = None,
        dtype: DTypeLike = jnp.float32,
        **head,
    ) -> Network:
        """Builds the network.

        Args:
          num_classes: number of logits.
          variant: reference implementation whose padding, epsilons and activations the network has,
            a key of `variants`; empty for the default.
          top: include the dense layers that some backbones (VGG) have before the classifier.
          drop_path: see `Backbone`.
          remat: see `Backbone`.
          axis_name: pmap axis name; None under jit.
          dtype: compute dtype; parameters and logits are float32.
          **head: fields of `head.Head`, such as `hidden` and `dropout`.

        Returns:
          A module that maps normalised images [batch, height, width, 3] to float32 logits [batch,
          num_classes].

        Raises:
          UserError: `variant` is unknown.
        """
        if variant and variant not in self.variants:
            raise UserError(
                f"{self.name} has no variant {variant!r}: expected one of "
                f"{', '.join(self.variants)}"
            )
        fields = {**self.fields, **self.variants[variant or next(iter(self.variants))]}
        if top and hasattr(self.backbone, "top"):
            fields["top"] = True
        return Network(
            self.backbone(
                **fields, drop_path=drop_path, remat=remat, axis_name=axis_name, dtype=dtype
            ),
            Head(num_classes, axis_name=axis_name, dtype=dtype, **head),
        )

    def linear(self, num_classes: int = 1000, *, variant: str = "", top: bool = False) -> Network:
        """Builds the network with a linear head; see `registry.linear`."""
        return self.build(
            num_classes, variant=variant, top=top, hidden=(), batch_norm=False, dropout=(0.0, 0.0)
        )


_ARCHITECTURES = {
    name: Architecture(
        name,
        module.__name__.rpartition(".")[2],
        backbone,
        fields,
        module.VARIANTS,
        module.MIN_IMAGE_SIZE,
        getattr(module, "MIN_IMAGE_SIZES", {}),
    )
    for module, backbone in _FAMILIES
    for name, fields in module.NETWORKS.items()
}


def _spelling(name: str) -> str:
    """The name without what aliases differ in: case, underscores and hyphens."""
    return name.lower().replace("_", "").replace("-", "")


_BY_SPELLING = {_spelling(name): name for name in _ARCHITECTURES}
_BY_SPELLING |= {
    "mobilenet": "mobilenetv1_100",  # Keras
    # timm's second entry for a network, with Google's padding and epsilons: our variant "tf".
    **{_spelling(f"tf_{name}"): name for name in efficientnet.NETWORKS},
}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the canonical names that match a pattern, sorted.

    Args:
      pattern: as in a shell (`fnmatch`), such as "convnext*"; case matters.
    """
    return sorted(name for name in _ARCHITECTURES if fnmatch.fnmatchcase(name, pattern))


def canonical_name(name: str) -> str:
    """Returns the canonical name of a network, given that name or an alias.

    Aliases differ from the canonical name in case, underscores or hyphens (`ResNet50` and
    `resnet_50` for `resnet50`), are Keras's `MobileNet`, or are timm's `tf_efficientnet*`.

    Raises:
      UserError: no network has this name; the message suggests the nearest one.
    """
    known = _BY_SPELLING.get(_spelling(name))
    if known is None:
        near = difflib.get_close_matches(name.lower(), list_models(), 1)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(list_models())}"
        )
        raise UserError(f"unknown model {name!r}: {hint}")
    return known


def architecture(name: str) -> Architecture:
    """Returns the architecture of a network, given its name or an alias.

    Raises:
      UserError: no network has this name.
    """
    return _ARCHITECTURES[canonical_name(name)]


def build(name: str, num_classes: int, **options) -> Network:
    """Builds a network by name.

    Args:
      name: a name that `list_models` returns, or an alias.
      num_classes: number of logits.
      **options: the other arguments of `Architecture.build`.

    Returns:
      A module that maps normalised images [batch, height, width, 3] to float32 logits [batch,
      num_classes].

    Raises:
      UserError: `name` or `variant` is unknown.
    """
    return architecture(name).build(num_classes, **options)


def linear(name: str, num_classes: int = 1000, *, variant: str = "", top: bool = False) -> Network:
    """Builds a network as published: its head is one dense layer.

    Args:
      name: a name that `list_models` returns, or an alias.
      num_classes: number of logits.
      variant: as in `build`.
      top: as in `build`.

    Raises:
      UserError: `name` or `variant` is unknown.
    """
    return architecture(name).linear(num_classes, variant=variant, top=top)


def random_model(
    name: str, num_classes: int = 1000, *, variant: str = "", top: bool = False
) -> tuple[Network, PyTree]:
    """Returns a network with a linear head, and random variables from a fixed seed.

    The arguments and errors are those of `linear`.

    Returns:
      The module, and `{"params": ..., "batch_stats": ...}`. It maps normalised float32 images
      [batch, height, width, 3] to logits [batch, num_classes].
    """
    model = linear(name, num_classes, variant=variant, top=top)
    return model, init_variables(model)


def _init_compiler_options() -> dict[str, int] | None:
    """Returns XLA's options for a program that runs once: on CPU, less optimisation.

    The program compiles in less than half the time and computes the same bits.
    """
    # JAX refuses options inside a trace such as `jax.eval_shape`, where nothing is compiled.
    traced = isinstance(jnp.zeros((), jnp.float32), jax.core.Tracer)
    if traced or jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": 1}


def init_variables(
    model: Network, size: int = 96, seed: int = 0, given: PyTree | None = None
) -> dict[str, PyTree]:
    """Initialises a network's variables at random, except for modules that are given.

    Compiling the initialisation of a deep backbone takes seconds; a given backbone is left out of
    the computation.

    Args:
      model: the network.
      size: side of its images in pixels.
      seed: random seed. A module's values do not depend on which other modules are given.
      given: variables of whole modules, `{"params": {"backbone": ...}, "batch_stats": ...}`, which
        are returned unchanged.

    Returns:
      `{"params": ..., "batch_stats": ...}`.
    """
    given = {name: (given or {}).get(name, {}) for name in ("params", "batch_stats")}

    @functools.partial(jax.jit, compiler_options=_init_compiler_options())
    def init_others() -> dict[str, PyTree]:
        variables = model.init(jax.random.key(seed), jnp.zeros((1, size, size, 3), jnp.float32))
        return {
            name: {k: module for k, module in variables.get(name, {}).items() if k not in modules}
            for name, modules in given.items()
        }

    return {name: modules | given[name] for name, modules in init_others().items()}


def stages(model: Network, variables: PyTree, x: Float[Array, "b h w 3"]) -> list[Array]:
    """Returns the backbone's map at the end of each stage, the largest first.

    Args:
      model: a network from `build`, `linear` or `bloodjax.create_model`.
      variables: its variables.
      x: normalised images.

    Returns:
      Arrays [b, h_i, w_i, c_i] in the network's compute dtype. Under `jax.jit` the head is not
      computed.
    """
    _, collections = model.apply(variables, x, train=False, mutable=["intermediates"])
    maps = collections["intermediates"]["backbone"]
    return [maps[f"stage_{i}"][0] for i in range(len(maps))]
