"""The recipe `convnext_base` of the package."""

from bloodjax.configs.convnext_base import get_config

__all__ = ["get_config"]
