"""Config values that are texts with a grammar, in parsed form. Each text is parsed once.

The config itself holds only numbers and text, so that it is stored as JSON. Code that needs the
meaning of such a text calls a function of this module. `config.validate` calls them first, so a
malformed text ends a run before it starts.
"""

from __future__ import annotations

import ast
import csv
import functools
import itertools
import math
import re
from typing import Literal, NamedTuple

from bloodjax.augment import policy
from bloodjax.config.defaults import PHASES, Config
from bloodjax.corruptions import registry
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError

# A number as people write a fraction. Python's float() also reads 2024_01, a common folder name.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")

# What `ast.literal_eval` raises for a text that is no literal: a TypeError for a list as a key.
NOT_LITERAL = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)

# Value of `folds` for a fold of each group.
LEAVE_ONE_GROUP_OUT = "leave-one-group-out"

# Value of a learning rate that a range test finds.
AUTO_RATE = "auto"

# Names of the values of `data.sampling` -> exponent of a class's size.
SAMPLING = {"natural": 1.0, "sqrt": 0.5, "balanced": 0.0}


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
    data = config.data
    return ReadOptions(
        data.bad_images,
        data.scale or data.bits,
        data.fit,
        data.layout,
        data.columns,
        data.images,
        task=data.task,
        first_label=data.first_label,
    )


def training_size(config: Config, phase: str, epoch: int) -> int | None:
    """Side in pixels that `config.phases[phase].sizes` gives to images in an epoch of the phase.

    Args:
      config: Config of the run.
      phase: "head" or "finetune".
      epoch: Epoch, counted from the start of the phase.

    Returns:
      The size, or None if images keep that of the run.
    """
    options = config.phases[phase]
    for size, end in parse_sizes(options.sizes):
        if epoch < round(end * options.epochs):
            return None if size == config.data.image_size else size
    return None


@functools.cache
def parse_sizes(text: str) -> tuple[tuple[int, float], ...]:
    """Parses "64:0.4,80:0.7,96" into sizes and the fractions of the phase at which they end.

    Raises:
      ValueError: `text` is not a list of sizes, or the fractions do not rise up to 1.
    """
    entries = []
    for part in text.split(",") if text else ():
        size, colon, end = part.partition(":")
        entries.append((int(size), float(end) if colon else 1.0))
    ends = [0.0, *(end for _, end in entries)]
    if entries and (ends[-1] != 1 or not all(a < b for a, b in itertools.pairwise(ends))):
        raise ValueError("the fractions do not rise from above 0 to 1")
    return tuple(entries)


def teacher_folders(config: Config) -> tuple[str, ...]:
    """The workdirs in `config.distill.workdir`; () without a teacher."""
    return parse_names(config.distill.workdir)


def sampling_exponent(config: Config) -> float:
    """The exponent q of `config.data.sampling`: an epoch has a class in proportion to size**q."""
    return parse_sampling(config.data.sampling)


def parse_sampling(text: str) -> float:
    """The exponent that a name or a number stands for; NaN for any other text."""
    if text in SAMPLING:
        return SAMPLING[text]
    return float(text) if _NUMBER.fullmatch(text) else math.nan


def parse_learning_rate(value: str | float) -> float | None:
    """The number in a value of a learning rate; None for "auto", NaN for any other text."""
    if value == AUTO_RATE:
        return None
    if isinstance(value, str):
        return float(value) if _NUMBER.fullmatch(value) else math.nan
    return float(value)


def auto_rates(config: Config) -> tuple[str, ...]:
    """Names of the phases whose learning rate a range test finds."""
    return tuple(name for name in PHASES if config.phases[name].learning_rate == AUTO_RATE)


@functools.cache
def parse_split_source(text: str | float) -> SplitSource:
    """Parses "auto", a number or a SPEC. A number may lie outside [0, 1): `RULES` rejects it."""
    text = str(text)
    if text == "auto":
        return SplitSource()
    if _NUMBER.fullmatch(text):
        return SplitSource(fraction=float(text))
    return SplitSource(spec=text)


def parse_names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list, as they are written but for blanks around them.

    A name with a comma is put in double quotes, as in a CSV file; a Python tuple or list of texts
    is read too. What looks like a number stays text: "00,4_1" are the names 00 and 4_1.

    Args:
      text: The list; "" is an empty one.
    """
    if text.strip()[:1] in ("(", "["):
        try:
            literal = ast.literal_eval(text.strip())
        except NOT_LITERAL:
            literal = None
        if isinstance(literal, (tuple, list)) and all(isinstance(name, str) for name in literal):
            return tuple(literal)
    try:
        rows = list(csv.reader([text], skipinitialspace=True))
    except csv.Error:  # a line break outside quotes
        rows = [text.split(",")]
    return tuple(name.strip() for name in rows[0]) if rows else ()


@functools.cache
def _policy(text: str) -> policy.Policy:
    try:
        return policy.parse(text)
    except policy.PolicyError as error:
        raise UserError(f"config.augment: {error}") from None


@functools.cache
def _distortions(text: str) -> dict[str, tuple[int, ...]]:
    return registry.parse(text, "config.data.validation_distortion") if text else {}
