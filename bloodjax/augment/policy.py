"""Parses an augmentation policy: text with stages separated by "|".

    d4|randaugment(2, 0.4)|erase(0.5, p=0.25)|mixup(0.2, p=0.5)|cutmix(1.0, p=0.5)

A stage is a call with literal arguments; without arguments, the parentheses are optional.

- `none`, `flip`, `d4`: a random view from `geometry.VIEWS`, exact. At most one of them.
- NAME(magnitude=0.5, p=1.0), for an operation in `ops.OPS`: applied with probability p, at a random
  magnitude from 0 to `magnitude`.
- `choice(pool="standard", magnitude=0.5, num_ops=1)`: random operations of a pool, each at an
  independent random magnitude.
- `randaugment(num_ops=2, magnitude=0.4, pool="standard")`: random operations at a fixed magnitude
  (Cubuk et al., 2020, arXiv:1909.13719).
- `trivialaugment(pool="standard")`: one random operation at any magnitude (Müller and Hutter, 2021,
  arXiv:2103.10158).
- `augmix(width=3, depth=3, magnitude=0.3, pool="standard", alpha=1.0)`: the image mixed with
  several chains of operations (Hendrycks et al., 2020, arXiv:1912.02781). Its consistency loss is
  `config.loss.consistency`.
- `mixup(alpha=0.2, p=1.0)`, `cutmix(alpha=1.0, p=1.0)`: see `mix`. If both are given, an image gets
  at most one of them, and the probabilities must add up to at most 1.
- `fourier(alpha=1.0, band=0.05, p=1.0)`, `mixstyle(alpha=0.1, p=1.0)`: the image takes over a share
  of the style of another one, and keeps its label; see `mix.mix_styles`. It comes before mixup and
  cutmix.
- `fill("reflect" or "edge")`: the pixels outside an image that has been moved.

A pool is a name in `ops.POOLS`, or comma-separated names of operations. Stages before and after
`augmix` are applied before and after it. Otherwise, operations of one kind are composed, and the
kinds are applied in the order that `ops` documents. An effect that is no lookup table, map or
matrix is applied once: if several stages draw it, the last one's magnitude counts.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from bloodjax.augment.affine import FILLS
from bloodjax.augment.geometry import VIEWS
from bloodjax.augment.ops import OPS, POOLS


@dataclasses.dataclass(frozen=True)
class Layer:
    """A random operation of a pool.

    Attributes:
      pool: Names of operations, all equally likely.
      low: Smallest magnitude.
      high: Largest magnitude.
      p: Probability that an operation is applied at all.
    """

    pool: tuple[str, ...]
    low: float
    high: float
    p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Pass:
    """A chain of layers that are composed, or AugMix's mixture of several chains.

    Attributes:
      layers: Layers of each chain; in a mixture, a chain uses a random number of them.
      width: Number of chains of a mixture; 0 is a single chain without mixture.
      alpha: Parameter of the Dirichlet and Beta distributions of the mixture's weights.
    """

    layers: tuple[Layer, ...]
    width: int = 0
    alpha: float = 1.0

    @property
    def pool(self) -> frozenset[str]:
        """All operations that may be applied."""
        return frozenset(name for layer in self.layers for name in layer.pool)


@dataclasses.dataclass(frozen=True)
class Mix:
    """Parameters of `mix.mix`. A probability of 0 disables the method."""

    mixup_alpha: float = 1.0
    mixup_p: float = 0.0
    cutmix_alpha: float = 1.0
    cutmix_p: float = 0.0
    fourier_alpha: float = 1.0
    fourier_band: float = 0.05
    fourier_p: float = 0.0
    mixstyle_alpha: float = 0.1
    mixstyle_p: float = 0.0

    @property
    def labelled(self) -> bool:
        """Whether labels are mixed, too: by MixUp or CutMix."""
        return self.mixup_p + self.cutmix_p > 0

    @property
    def styles(self) -> bool:
        """Whether styles are mixed."""
        return self.fourier_p + self.mixstyle_p > 0

    def __bool__(self) -> bool:
        return self.labelled or self.styles


@dataclasses.dataclass(frozen=True)
class Policy:
    """A parsed augmentation policy.

    Attributes:
      views: A key of `geometry.VIEWS`.
      passes: Passes that are applied to each image, one after another.
      mix: Mixing of images with each other.
      fill: One of `affine.FILLS`.
    """

    views: str = "none"
    passes: tuple[Pass, ...] = ()
    mix: Mix = Mix()
    fill: str = "reflect"

    @property
    def only_views(self) -> bool:
        """Whether the policy does nothing but choose a view of each image."""
        return not self.passes and not self.mix


class PolicyError(ValueError):
    """A text is not a valid policy; the message says why."""


def parse(text: str) -> Policy:
    """Parses a policy; see the module's docstring for the format.

    Raises:
      PolicyError: The text is not a policy. The message says what is wrong and what is expected.
    """
    passes, layers, settings = [], [], {}
    for name, args, kwargs in _calls(text):
        if name not in _STAGES:
            raise PolicyError(_unknown("", name, tuple(_STAGES)))
        stage = _called(name, args, kwargs)
        if isinstance(stage, Pass):
            passes += [*_composed(layers), stage]
            layers = []
        elif isinstance(stage, dict):
            if set(stage) & set(settings):
                raise PolicyError(f"{name} comes after another of its kind, expected at most one")
            settings |= stage
        else:
            layers += stage
    views, fill = settings.pop("views", "none"), settings.pop("fill", FILLS[0])
    mix = Mix(**settings)
    if mix.mixup_p + mix.cutmix_p > 1:
        raise PolicyError(
            f"mixup and cutmix have probabilities of {mix.mixup_p + mix.cutmix_p:g} in all, "
            "expected at most 1"
        )
    return Policy(views, (*passes, *_composed(layers)), mix, fill)


def stages(text: str) -> tuple[str, ...]:
    """The text of each stage of a policy, which need not be valid; see the module's docstring."""
    return tuple(stage.strip() for stage in text.split("|"))


def _calls(text: str) -> Iterator[tuple[str, list, dict]]:
    """Parses each stage into its name, positional arguments and keyword arguments."""
    for stage in stages(text):
        try:
            node = ast.parse(stage, mode="eval").body
            call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
            if not isinstance(call.func, ast.Name):
                raise ValueError
            args = [ast.literal_eval(value) for value in call.args]
            kwargs = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
            raise PolicyError(
                f"stage {stage!r}: expected NAME or NAME(number, key=value)"
            ) from None
        given = [keyword.arg for keyword in call.keywords]
        for key in kwargs:
            if given.count(key) > 1:
                raise PolicyError(f"stage {stage!r}: {key} is given twice, expected once")
        yield call.func.id, args, kwargs


def _called(name: str, args: list, kwargs: dict) -> Any:
    """Calls the function of a stage after checking its arguments."""
    function = _STAGES[name]
    parameters = inspect.signature(function).parameters
    if len(args) > len(parameters) or not set(kwargs) <= set(list(parameters)[len(args) :]):
        given = [repr(a) for a in args] + [f"{k}={v!r}" for k, v in kwargs.items()]
        signature = ", ".join(f"{p.name}={p.default!r}" for p in parameters.values())
        raise PolicyError(f"{name}({', '.join(given)}): expected {name}({signature})")
    return function(*args, **kwargs)


def _number(
    name: str, value: Any, low: int | float, high: int | float, integer: bool = False
) -> None:
    types = int if integer else (int, float)
    if isinstance(value, bool) or not isinstance(value, types) or not low <= value <= high:
        expected = "an integer" if integer else "a number"
        raise PolicyError(f"{name} is {value!r}, expected {expected} from {low:g} to {high:g}")


def _pool(stage: str, pool: Any) -> tuple[str, ...]:
    if isinstance(pool, str) and pool in POOLS:
        return POOLS[pool]
    names = pool.split(",") if isinstance(pool, str) else pool
    if not isinstance(names, (list, tuple)) or not names:
        raise PolicyError(
            f"{stage}'s pool is {pool!r}, expected a pool's name or operations' names"
        )
    names = tuple(n.strip() if isinstance(n, str) else n for n in names)
    for name in names:
        if not isinstance(name, str) or name not in OPS:
            raise PolicyError(_unknown(f"{stage}'s pool: ", name, (*OPS, *POOLS)))
    return names


def _unknown(where: str, name: Any, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(name), known, 1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
    return f"{where}unknown operation {name!r}: {hint}"


def _composed(layers: list[Layer]) -> tuple[Pass, ...]:
    return (Pass(tuple(layers)),) if layers else ()


def _view(name: str) -> dict[str, str]:
    return {"views": name}


def _op(name: str, /, magnitude=0.5, p=1.0) -> list[Layer]:
    _number(f"{name}'s magnitude", magnitude, 0, 1)
    _number(f"{name}'s p", p, 0, 1)
    return [Layer((name,), 0.0, float(magnitude), float(p))]


def _choice(pool="standard", magnitude=0.5, num_ops=1) -> list[Layer]:
    _number("choice's magnitude", magnitude, 0, 1)
    _number("choice's num_ops", num_ops, 1, 16, integer=True)
    return [Layer(_pool("choice", pool), 0.0, float(magnitude))] * num_ops


def _randaugment(num_ops=2, magnitude=0.4, pool="standard") -> list[Layer]:
    _number("randaugment's num_ops", num_ops, 1, 16, integer=True)
    _number("randaugment's magnitude", magnitude, 0, 1)
    return [Layer(_pool("randaugment", pool), float(magnitude), float(magnitude))] * num_ops


def _trivialaugment(pool="standard") -> list[Layer]:
    return [Layer(_pool("trivialaugment", pool), 0.0, 1.0)]


def _augmix(width=3, depth=3, magnitude=0.3, pool="standard", alpha=1.0) -> Pass:
    _number("augmix's width", width, 1, 8, integer=True)
    _number("augmix's depth", depth, 1, 8, integer=True)
    _number("augmix's magnitude", magnitude, 0, 1)
    _number("augmix's alpha", alpha, 0.01, 100)
    layer = Layer(_pool("augmix", pool), 0.0, float(magnitude))
    return Pass((layer,) * depth, width, float(alpha))


def _mixed(name: str, alpha: Any, p: Any) -> dict[str, float]:
    _number(f"{name}'s alpha", alpha, 0.01, 100)
    _number(f"{name}'s p", p, 0, 1)
    return {f"{name}_alpha": float(alpha), f"{name}_p": float(p)}


def _mixup(alpha=0.2, p=1.0) -> dict[str, float]:
    return _mixed("mixup", alpha, p)


def _cutmix(alpha=1.0, p=1.0) -> dict[str, float]:
    return _mixed("cutmix", alpha, p)


def _fourier(alpha=1.0, band=0.05, p=1.0) -> dict[str, float]:
    _number("fourier's alpha", alpha, 0, 1)
    _number("fourier's band", band, 0, 0.5)
    _number("fourier's p", p, 0, 1)
    return {"fourier_alpha": float(alpha), "fourier_band": float(band), "fourier_p": float(p)}


def _mixstyle(alpha=0.1, p=1.0) -> dict[str, float]:
    return _mixed("mixstyle", alpha, p)


def _fill(name="reflect") -> dict[str, str]:
    if name not in FILLS:
        raise PolicyError(f"fill is {name!r}, expected one of {', '.join(FILLS)}")
    return {"fill": name}


# Stage -> function that returns layers, a pass, or other fields of the policy.
_STAGES: dict[str, Callable[..., list[Layer] | Pass | dict[str, Any]]] = {
    **{name: functools.partial(_view, name) for name in VIEWS},
    "choice": _choice,
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
    "augmix": _augmix,
    "mixup": _mixup,
    "cutmix": _cutmix,
    "fourier": _fourier,
    "mixstyle": _mixstyle,
    "fill": _fill,
    **{name: functools.partial(_op, name) for name in OPS},
}
