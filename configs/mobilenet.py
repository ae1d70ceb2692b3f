"""The recipe `mobilenet` of the package."""

from bloodjax.configs.mobilenet import get_config

__all__ = ["get_config"]
