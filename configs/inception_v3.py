"""The recipe `inception_v3` of the package."""

from bloodjax.configs.inception_v3 import get_config

__all__ = ["get_config"]
