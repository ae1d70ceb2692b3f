"""The recipe `recipes/rare` of the package."""

from bloodjax.configs.recipes.rare import get_config

__all__ = ["get_config"]
