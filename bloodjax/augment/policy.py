"""What a config says of augmentation, as text: stages, parted by "|".

    d4|randaugment(2, 0.4)|erase(0.5, p=0.25)|mixup(0.2, p=0.5)|cutmix(1.0, p=0.5)

Stages are calls with literal arguments; one without arguments may leave the brackets out.

- `none`, `flip`, `d4`: a random view of `geometry.VIEWS`, exact. At most one.
- NAME(magnitude=0.5, p=1.0), of an operation in `ops.OPS`: with probability p, at a magnitude drawn
  from 0 to `magnitude`.
- `choice(pool="standard", magnitude=0.5, num_ops=1)`: operations drawn from a pool, each at a
  magnitude of its own.
- `randaugment(num_ops=2, magnitude=0.4, pool="standard")`: all at the same magnitude (Cubuk et al.,
  2020, arXiv:1909.13719).
- `trivialaugment(pool="standard")`: one, at any magnitude (Müller and Hutter, 2021,
  arXiv:2103.10158).
- `augmix(width=3, depth=3, magnitude=0.3, pool="standard", alpha=1.0)`: the image mixed with
  several chains of operations (Hendrycks et al., 2020, arXiv:1912.02781), without its consistency
  loss.
- `mixup(alpha=0.2, p=1.0)`, `cutmix(alpha=1.0, p=1.0)`: see `mix`; where both stand, one or the
  other, and their probabilities add up to at most 1.
- `fill("reflect" or "edge")`: what lies outside an image that has been moved.

A pool is a name of `ops.POOLS`, or names of operations with commas between. What stands before and
after `augmix` is done before and after it; else operations of one kind are composed, and the kinds
go in the order of `ops`.
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
    """One operation of a pool, all equally likely, with probability `p`, at a magnitude between
    `low` and `high`.
    """

    pool: tuple[str, ...]
    low: float
    high: float
    p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Pass:
    """Layers that are composed; or with a width, a mixture of as many chains of at most that many.

    Attributes:
      layers: of each chain.
      width: chains; 0 is one chain and no mixture.
      alpha: of the Dirichlet and Beta distributions of the mixture's weights.
    """

    layers: tuple[Layer, ...]
    width: int = 0
    alpha: float = 1.0

    @property
    def pool(self) -> frozenset[str]:
        """All operations that may be drawn."""
        return frozenset(name for layer in self.layers for name in layer.pool)


@dataclasses.dataclass(frozen=True)
class Mix:
    """Mixing images with one another; see `mix`. A probability of 0 is off."""

    mixup_alpha: float = 1.0
    mixup_p: float = 0.0
    cutmix_alpha: float = 1.0
    cutmix_p: float = 0.0

    def __bool__(self) -> bool:
        return self.mixup_p + self.cutmix_p > 0


@dataclasses.dataclass(frozen=True)
class Policy:
    """A whole augmentation, as the step takes it.

    Attributes:
      views: a key of `geometry.VIEWS`.
      passes: what is done to each image, one after the other.
      mix: what is done among images.
      fill: a name of `affine.FILLS`.
    """

    views: str = "none"
    passes: tuple[Pass, ...] = ()
    mix: Mix = Mix()
    fill: str = "reflect"

    @property
    def only_views(self) -> bool:
        """Whether an image can come in no other form than that of a view."""
        return not self.passes and not self.mix


class PolicyError(ValueError):
    """A text is not a policy; the message says why."""


def parse(text: str) -> Policy:
    """The policy that a text describes.

    Raises:
      PolicyError: it describes none: what is wrong, and what was expected.
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


def _calls(text: str) -> Iterator[tuple[str, list, dict]]:
    """Name, positional and named arguments of each stage."""
    for stage in text.split("|"):
        try:
            node = ast.parse(stage.strip(), mode="eval").body
            call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
            if not isinstance(call.func, ast.Name):
                raise ValueError
            args = [ast.literal_eval(value) for value in call.args]
            kwargs = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
        except (SyntaxError, ValueError, TypeError):
            raise PolicyError(
                f"stage {stage.strip()!r}: expected NAME or NAME(number, key=value)"
            ) from None
        yield call.func.id, args, kwargs


def _called(name: str, args: list, kwargs: dict) -> Any:
    """What a stage's function makes of the arguments."""
    function = _STAGES[name]
    parameters = inspect.signature(function).parameters
    if len(args) > len(parameters) or not set(kwargs) <= set(list(parameters)[len(args) :]):
        given = [repr(a) for a in args] + [f"{k}={v!r}" for k, v in kwargs.items()]
        takes = ", ".join(f"{p.name}={p.default!r}" for p in parameters.values())
        raise PolicyError(f"{name}({', '.join(given)}): expected {name}({takes})")
    return function(*args, **kwargs)


def _number(
    name: str, value: Any, low: int | float, high: int | float, whole: bool = False
) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise PolicyError(f"{name} is {value!r}, expected {kind} from {low:g} to {high:g}")


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
        if name not in OPS:
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
    _number("choice's num_ops", num_ops, 1, 16, whole=True)
    return [Layer(_pool("choice", pool), 0.0, float(magnitude))] * num_ops


def _randaugment(num_ops=2, magnitude=0.4, pool="standard") -> list[Layer]:
    _number("randaugment's num_ops", num_ops, 1, 16, whole=True)
    _number("randaugment's magnitude", magnitude, 0, 1)
    return [Layer(_pool("randaugment", pool), float(magnitude), float(magnitude))] * num_ops


def _trivialaugment(pool="standard") -> list[Layer]:
    return [Layer(_pool("trivialaugment", pool), 0.0, 1.0)]


def _augmix(width=3, depth=3, magnitude=0.3, pool="standard", alpha=1.0) -> Pass:
    _number("augmix's width", width, 1, 8, whole=True)
    _number("augmix's depth", depth, 1, 8, whole=True)
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


def _fill(name="reflect") -> dict[str, str]:
    if name not in FILLS:
        raise PolicyError(f"fill is {name!r}, expected one of {', '.join(FILLS)}")
    return {"fill": name}


# Each gives layers, a whole pass, or some of the policy's other fields.
_STAGES: dict[str, Callable[..., list[Layer] | Pass | dict[str, Any]]] = {
    **{name: functools.partial(_view, name) for name in VIEWS},
    "choice": _choice,
    "randaugment": _randaugment,
    "trivialaugment": _trivialaugment,
    "augmix": _augmix,
    "mixup": _mixup,
    "cutmix": _cutmix,
    "fill": _fill,
    **{name: functools.partial(_op, name) for name in OPS},
}
