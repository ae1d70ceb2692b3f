"""Options with which XLA's CPU compiler makes faster programs of our steps.

For parts of a program, XLA's CPU compiler calls YNNPACK: by default for single convolutions, for
single matrix products, and for reductions with what they reduce. For training the convolutions are
left to XLA here, and for inference everything is: a sum takes the convolutions before it along, and
YNNPACK's make an answer take up to 2.6 times as long. Without its reductions, a training step takes
up to three times as long. benchmarks/RESULTS.md has the figures.
"""

from __future__ import annotations

import functools
import os
from typing import Literal

import jax

_OPTION = "xla_cpu_experimental_ynn_fusion_type"
_LIBRARY_FUSIONS = {
    "training": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    "inference": "",
}


def compiler_options(purpose: Literal["training", "inference"], platform: str) -> dict[str, str]:
    """The argument `compiler_options` of `jax.jit` for a program of ours.

    Args:
      purpose: Whether the program computes gradients.
      platform: Platform of the device that it is for, such as "cpu".

    Returns:
      Options by name: none for a GPU or TPU, if the variable XLA_FLAGS has a value for them, or if
      this release of XLA does not know them.
    """
    if platform != "cpu" or _OPTION in os.environ.get("XLA_FLAGS", ""):
        return {}
    options = {_OPTION: _LIBRARY_FUSIONS[purpose]}
    return options if _is_known(**options) else {}


@functools.cache
def _is_known(**options: str) -> bool:
    """Whether XLA compiles a program with these options, which may change without notice."""
    program = jax.jit(lambda: 0, compiler_options=options)
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            program.lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
