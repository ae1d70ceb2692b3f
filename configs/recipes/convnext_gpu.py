"""The recipe `recipes/convnext_gpu` of the package."""

from bloodjax.configs.recipes.convnext_gpu import get_config

__all__ = ["get_config"]
