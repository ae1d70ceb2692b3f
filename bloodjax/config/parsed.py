"""Config values that are texts with a grammar, in parsed form. Each text is parsed once.

The config itself holds only numbers and text, so that it is stored as JSON. Code that needs the
meaning of such a text calls a function of this module. `config.validate` calls them first, so a
malformed text ends a run before it starts.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

from bloodjax.augment import policy
from bloodjax.config.defaults import Config
from bloodjax.corruptions import registry
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError


class SplitSource(NamedTuple):
    """Where the images of `data.validation` or `data.test` come from.

    Attributes:
      spec: SPEC of a source of its own, or None.
      fraction: Fraction of the training source to split off, or None.
    """

    spec: str | None = None
    fraction: float | None = None

    @property
    def is_auto(self) -> bool:
        """Whether the source's own split is used, or a default fraction without one."""
        return self.spec is None and self.fraction is None


def augmentation(config: Config) -> policy.Policy:
    """The augmentation policy that `config.augment` describes.

    Raises:
      UserError: `config.augment` is not a policy.
    """
    return _policy(config.augment)


def split_source(config: Config, split: Literal["validation", "test"]) -> SplitSource:
    """Where the images of a split come from: `config.data.validation` or `config.data.test`."""
    return parse_split_source(config.data[split])


def distortions(config: Config) -> dict[str, tuple[int, ...]]:
    """Distortion name -> severities, of `config.data.validation_distortion`; {} for none.

    Raises:
      UserError: a name or a severity is unknown.
    """
    return dict(_distortions(config.data.validation_distortion))


def read_options(config: Config) -> ReadOptions:
    """How a run reads the images of its sources, and of those that it is applied to."""
    return ReadOptions(bad_images=config.data.bad_images)


@functools.cache
def parse_split_source(text: str | float) -> SplitSource:
    """Parses "auto", a number or a SPEC. A number may lie outside [0, 1): `RULES` rejects it."""
    if text == "auto":
        return SplitSource()
    try:
        return SplitSource(fraction=float(text))
    except ValueError:
        return SplitSource(spec=str(text))


@functools.cache
def _policy(text: str) -> policy.Policy:
    try:
        return policy.parse(text)
    except policy.PolicyError as error:
        raise UserError(f"config.augment: {error}") from None


@functools.cache
def _distortions(text: str) -> dict[str, tuple[int, ...]]:
    return registry.parse(text, "config.data.validation_distortion") if text else {}
