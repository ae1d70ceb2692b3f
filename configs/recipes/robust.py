"""The recipe `recipes/robust` of the package."""

from bloodjax.configs.recipes.robust import get_config

__all__ = ["get_config"]
