"""The recipe `quickstart` of the package."""

from bloodjax.configs.quickstart import get_config

__all__ = ["get_config"]
