"""Attribution: where in an image a network sees its class."""

from bloodjax.attribution.explanation import DEFAULT, METHODS, explain

__all__ = ["DEFAULT", "METHODS", "explain"]
