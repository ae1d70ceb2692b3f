import jax
import jax.numpy as jnp
import pytest

from bloodjax.training import compiler_options as module
from bloodjax.training.compiler_options import compiler_options

PURPOSES = ("training", "inference")


@pytest.fixture(autouse=True)
def _no_flags(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_xla_computes_convolutions_itself(purpose):
    def network(x, kernel):
        y = jax.lax.conv(x, kernel, (1, 1), "SAME")
        return jnp.maximum(y, 0).mean(axis=(2, 3))

    x, kernel = jnp.ones((2, 8, 8, 8)), jnp.ones((8, 8, 3, 3))
    options = compiler_options(purpose, "cpu")
    assert options
    text = jax.jit(network, compiler_options=options).lower(x, kernel).compile().as_text()
    within = text.partition("ENTRY")[0]
    assert " convolution(" in text
    assert " convolution(" not in within


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_other_platforms_have_none(purpose, platform):
    assert compiler_options(purpose, platform) == {}


def test_a_value_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=individual_dot")
    assert compiler_options("training", "cpu") == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("_OPTION", "xla_no_such_option"), ("_LIBRARY_FUSIONS", {"training": "NO_SUCH_TYPE"})],
)
def test_what_xla_does_not_know_is_left_out(name, value, monkeypatch):
    monkeypatch.setattr(module, name, value)
    assert compiler_options("training", "cpu") == {}
