"""Networks in Flax Linen, one file per family; `registry` knows them all by name."""

from bloodjax.models.registry import build, create_model, draw, linear, names, smallest, stages

__all__ = ["build", "create_model", "draw", "linear", "names", "smallest", "stages"]
