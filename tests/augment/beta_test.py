import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax import export

from bloodjax.augment import beta

LEVELS = np.linspace(0, 1, 1001, dtype=np.float32)


@pytest.mark.parametrize(
    ("a", "b"), [(0.01, 0.01), (0.2, 0.2), (1.0, 1.0), (3.0, 3.0), (0.4, 2.0), (100.0, 100.0)]
)
def test_quantiles_equal_scipys(a, b):
    found = beta.quantile(jnp.asarray(LEVELS), a, b)
    exact = scipy.stats.beta.ppf(LEVELS.astype(np.float64), a, b)
    np.testing.assert_allclose(found, exact, atol=1e-3)
    # Without the ends, where the quantiles of large parameters are steep.
    np.testing.assert_allclose(found[2:-2], exact[2:-2], atol=1e-4)


def test_a_cpu_draws_as_jax_does():
    key = jax.random.key(3)
    assert beta.beta(key, 0.2, 0.4) == jax.random.beta(key, 0.2, 0.4)
    expected = jax.random.dirichlet(key, jnp.full(3, 0.5))
    np.testing.assert_array_equal(beta.dirichlet(key, 0.5, 3), expected)


def test_dirichlet_s_parts_are_as_jax_s(monkeypatch):
    keys = jax.random.split(jax.random.key(0), 4000)
    monkeypatch.setattr(beta.lax, "platform_dependent", lambda key, *, cpu, default: default(key))
    found = jax.jit(jax.vmap(lambda key: beta.dirichlet(key, 0.5, 3)))(keys)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(found.mean(0), 1 / 3, atol=0.02)
    # Of a symmetric Dirichlet distribution: (1/3) (2/3) / (3 alpha + 1).
    np.testing.assert_allclose(found.var(0), 2 / 9 / 2.5, atol=0.01)


@pytest.mark.parametrize(
    "draw", [lambda key: beta.beta(key, 0.2, 0.2), lambda key: beta.dirichlet(key, 1.0, 3)]
)
def test_only_a_cpu_draws_in_loops(draw):
    def lowered(platform):
        def function(data):
            return jax.vmap(lambda key: draw(jax.random.wrap_key_data(key)))(data)

        shape = jax.ShapeDtypeStruct((4, 2), jnp.uint32)
        return export.export(jax.jit(function), platforms=[platform])(shape).mlir_module()

    assert "stablehlo.while" in lowered("cpu")
    assert "stablehlo.while" not in lowered("cuda")
    assert "stablehlo.while" not in lowered("tpu")
