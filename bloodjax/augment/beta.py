"""Random numbers of beta and Dirichlet distributions, without loops on accelerators.

`jax.random.beta` draws until numbers are accepted, in loops within loops. A GPU waits for its host
after each turn of each loop, several dozen times in a training step. An accelerator here looks up
one uniform number in a table of quantiles. A CPU draws as `jax.random` does.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

# Values between which a table is interpolated, and steps by which its density is integrated.
_CELLS, _STEPS = 1024, 1 << 14


def beta(key: Key[Array, ""], a: float, b: float) -> Float[Array, ""]:
    """A random number of Beta(a, b), as `jax.random.beta`; `a` and `b` are positive."""
    return lax.platform_dependent(
        key,
        cpu=lambda key: jax.random.beta(key, a, b),
        default=lambda key: quantile(jax.random.uniform(key), a, b),
    )


def dirichlet(key: Key[Array, ""], alpha: float, size: int) -> Float[Array, " size"]:
    """Random numbers of the symmetric Dirichlet distribution, as `jax.random.dirichlet`."""

    def by_quantiles(key):
        # Each takes its share of what those before it have left.
        parts, left = [], jnp.ones(())
        for others, each in zip(range(size - 1, 0, -1), jax.random.split(key, size), strict=False):
            part = left * quantile(jax.random.uniform(each), alpha, alpha * others)
            parts.append(part)
            left = left - part
        return jnp.stack([*parts, left])

    return lax.platform_dependent(
        key,
        cpu=lambda key: jax.random.dirichlet(key, jnp.full(size, alpha)),
        default=by_quantiles,
    )


def quantile(level: Float[Array, "*shape"], a: float, b: float) -> Float[Array, "*shape"]:
    """The quantiles of Beta(a, b) at levels in 0..1, interpolated in a table."""
    below, low = _lower_quantiles(a, b)
    above, high = _lower_quantiles(b, a)
    middle = below / (below + above)
    is_low = level < middle
    lower = _interpolate(low, jnp.minimum(level / middle, 1.0)) ** (1 / min(a, 1.0))
    upper = _interpolate(high, jnp.minimum((1 - level) / (1 - middle), 1.0)) ** (1 / min(b, 1.0))
    return jnp.where(is_low, lower, 1 - upper)


@functools.lru_cache
def _lower_quantiles(a: float, b: float) -> tuple[float, np.ndarray]:
    """The integral of x ** (a - 1) (1 - x) ** (b - 1) up to 1/2, and the quantiles there.

    Args:
      a: Parameter of the distribution.
      b: The other one.

    Returns:
      The integral, and x ** min(a, 1) at equally spaced shares of it. The power is one of which
      the quantiles are a smooth function, where `a` < 1 lets the density grow without bound.
    """
    power = min(a, 1.0)
    v = np.linspace(0, 0.5**power, _STEPS + 1)
    x = v ** (1 / power)
    density = x ** (a - power) * (1 - x) ** (b - 1) / power
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(v))])
    shares = np.linspace(0, area[-1], _CELLS + 1)
    return float(area[-1]), np.interp(shares, area, v).astype(np.float32)


def _interpolate(table: np.ndarray, share: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Interpolates values that are equally spaced in 0..1."""
    table = jnp.asarray(table)
    position = share * _CELLS
    cell = jnp.minimum(position.astype(jnp.int32), _CELLS - 1)
    low, high = table[cell], table[cell + 1]
    return low + (high - low) * (position - cell.astype(jnp.float32))
