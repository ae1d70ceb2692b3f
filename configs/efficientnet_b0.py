"""The recipe `efficientnet_b0` of the package."""

from bloodjax.configs.efficientnet_b0 import get_config

__all__ = ["get_config"]
