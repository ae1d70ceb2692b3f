"""Every test runs with eight CPU devices, strict dtypes and ranks, and checked array shapes."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()

import pathlib

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Shapes and dtypes in annotations are checked for the tests' whole run.
install_import_hook("bloodjax", "beartype.beartype")

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def cells_dir():
    """The folder of real cells beside the checkout; tests that need it skip without it."""
    if not (SHARED / "pbc96_train.zip").exists():
        pytest.skip(f"the real cells are not at hand (expected in {SHARED})")
    return SHARED
