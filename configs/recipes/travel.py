"""The recipe `recipes/travel` of the package."""

from bloodjax.configs.recipes.travel import get_config

__all__ = ["get_config"]
