"""What several configs share, for config files with `from configs import common`."""

from bloodjax.configs.common import from_scratch, report

__all__ = ["from_scratch", "report"]
