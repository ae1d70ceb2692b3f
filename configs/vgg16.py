"""The recipe `vgg16` of the package."""

from bloodjax.configs.vgg16 import get_config

__all__ = ["get_config"]
