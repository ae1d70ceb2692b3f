"""Networks in Flax Linen, one module per family; `registry` builds them by name."""

from bloodjax.models.registry import (
    Architecture,
    architecture,
    build,
    canonical_name,
    init_variables,
    linear,
    list_models,
    random_model,
    stages,
)

__all__ = [
    "Architecture",
    "architecture",
    "build",
    "canonical_name",
    "init_variables",
    "linear",
    "list_models",
    "random_model",
    "stages",
]
