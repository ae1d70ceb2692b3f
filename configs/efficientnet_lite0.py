"""The recipe `efficientnet_lite0` of the package."""

from bloodjax.configs.efficientnet_lite0 import get_config

__all__ = ["get_config"]
