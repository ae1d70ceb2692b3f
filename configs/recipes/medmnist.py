"""The recipe `recipes/medmnist` of the package."""

from bloodjax.configs.recipes.medmnist import get_config

__all__ = ["get_config"]
