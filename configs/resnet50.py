"""The recipe `resnet50` of the package."""

from bloodjax.configs.resnet50 import get_config

__all__ = ["get_config"]
