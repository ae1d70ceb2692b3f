"""The recipe `recipes/fast` of the package."""

from bloodjax.configs.recipes.fast import get_config

__all__ = ["get_config"]
