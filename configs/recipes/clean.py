"""The recipe `recipes/clean` of the package."""

from bloodjax.configs.recipes.clean import get_config

__all__ = ["get_config"]
