"""The recipe `cells_cpu` of the package."""

from bloodjax.configs.cells_cpu import get_config

__all__ = ["get_config"]
