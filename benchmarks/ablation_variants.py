"""The variants of a recipe that an ablation trains, and the rows of its table."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from bloodjax.augment import policy
from bloodjax.config import Config
from bloodjax.errors import UserError

# Bytes of the name of a variant's folder; file systems allow 255.
_LONGEST_NAME = 120
WHOLE = "the whole recipe"


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row of the table scores.

    Attributes:
      variant: Name of the variant, a key of `Ablation.variants`.
      weights: Weights as in `classifier.load`.
      views: Test-time views, see `augment.views`.
    """

    variant: str
    weights: str
    views: str


@dataclasses.dataclass(frozen=True)
class Ablation:
    """Variants of a recipe and how they are scored.

    Attributes:
      variants: Name, which is also the name of a folder -> values of config keys that differ from
        the recipe's.
      rows: Name in the table -> what is scored.
      is_cumulative: Whether each row adds to the one above it and is compared with it. Otherwise
        each row differs from the first one, and is compared with that.
    """

    variants: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Row]
    is_cumulative: bool

    def reference(self, name: str) -> str | None:
        """The row that a row is compared with; None for the first."""
        names = list(self.rows)
        position = names.index(name)
        if position == 0:
            return None
        return names[position - 1 if self.is_cumulative else 0]


_MIX = "|mixup(0.2, p=0.25)|cutmix(1.0, p=0.25)"
CUMULATIVE = Ablation(
    {
        "none": {"augment": "none", "ema": 0.0},
        "d4": {"augment": "d4", "ema": 0.0},
        "randaugment": {"augment": "d4|randaugment(2, 0.4)", "ema": 0.0},
        "mix": {"augment": f"d4|randaugment(2, 0.4){_MIX}", "ema": 0.99},
        "recipe": {"ema": 0.99},
    },
    {
        "no augmentation": Row("none", "epoch", "none"),
        "flips and quarter turns": Row("d4", "epoch", "none"),
        "+ RandAugment": Row("randaugment", "epoch", "none"),
        "+ MixUp and CutMix": Row("mix", "raw", "none"),
        "+ EMA": Row("mix", "epoch", "none"),
        "+ test-time views (d4)": Row("mix", "epoch", "d4"),
        "the recipe: its own operations in place of RandAugment": Row("recipe", "epoch", "d4"),
    },
    is_cumulative=True,
)


def one_change(
    recipe: Config,
    leave_out: bool,
    added: Mapping[str, str],
    changed: Mapping[str, tuple[str, str]],
) -> Ablation:
    """The whole recipe, and variants of it that differ in one thing each.

    All are scored with the recipe's own test-time views.

    Args:
      recipe: Config of the whole recipe.
      leave_out: Whether there is a variant without each stage of `recipe.augment`.
      added: Name -> stages that come before those of `recipe.augment`.
      changed: Name -> config key and its value, as in an override.

    Raises:
      UserError: Two variants have names that give the same folder.
    """
    stages = [stage for stage in policy.stages(recipe.augment) if stage != "none"]
    changes: dict[str, dict[str, Any]] = {WHOLE: {}}
    for i, stage in enumerate(stages) if leave_out else ():
        changes[f"without {stage}"] = {"augment": _augment(stages[:i] + stages[i + 1 :])}
    for name, text in added.items():
        changes[f"with {name}"] = {"augment": _augment([*policy.stages(text), *stages])}
    for name, (key, value) in changed.items():
        changes[f"changed: {name}"] = {key: value}
    variants, rows = {}, {}
    for name, of_variant in changes.items():
        folder = re.sub(r"[^\w.]+", "-", name).strip("-.")
        folder = folder.encode()[:_LONGEST_NAME].decode(errors="ignore")
        if folder in variants:
            raise UserError(f"{name}: another variant has the folder {folder}, expected its own")
        variants[folder] = of_variant
        rows[name] = Row(folder, "epoch", recipe.evaluation.tta)
    return Ablation(variants, rows, is_cumulative=False)


def _augment(stages: list[str]) -> str:
    return "|".join(stages) or "none"
