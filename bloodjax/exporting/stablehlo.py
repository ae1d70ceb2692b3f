"""A classifier as one StableHLO program, which jax alone loads and runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, PyTree, UInt8

from bloodjax.exporting import resizing
from bloodjax.exporting.function import FEATURES, PROBABILITIES, Exported

PLATFORMS = ("cpu", "cuda", "tpu")


def program(
    function: Exported,
    variables: PyTree,
    size: int,
    fit: str,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """Serialises a function of images of any number, height and width, with its weights.

    The program returns a dictionary of arrays by the names of `exporting.function`. It computes
    products in float32 on every platform, also where JAX by default rounds their operands.

    Args:
      function: From `function.exported`.
      variables: The network's variables.
      size: Height and width of the network's input in pixels.
      fit: How an image becomes a square; see `config.data.fit`.
      platforms: Platforms that the program is lowered for.
    """
    variables = jax.tree.map(jnp.asarray, variables)

    def run(images: UInt8[Array, "batch height width 3"]) -> dict[str, Array]:
        results = function(variables, resizing.to_square(images, size, fit))
        return dict(zip((PROBABILITIES, FEATURES), results, strict=False))

    shape = export.symbolic_shape("batch, height, width, 3")
    spec = jax.ShapeDtypeStruct(shape, jnp.uint8)
    with jax.default_matmul_precision("highest"), _without_folders():
        exported = export.export(jax.jit(run), platforms=platforms)(spec)
    return bytes(exported.serialize())


@contextlib.contextmanager
def _without_folders() -> Iterator[None]:
    """Has JAX name source files without their folders, which a program contains for debugging."""
    option = "jax_hlo_source_file_canonicalization_regex"
    before = getattr(jax.config, option)
    jax.config.update(option, ".*/")
    try:
        yield
    finally:
        jax.config.update(option, before)


def runner(content: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images to class probabilities that runs a serialised program."""
    call = jax.jit(export.deserialize(bytearray(content)).call)
    return lambda images: np.asarray(call(images)[PROBABILITIES])
