"""The recipe `convnext_large` of the package."""

from bloodjax.configs.convnext_large import get_config

__all__ = ["get_config"]
