"""Searches for better hyperparameters. A space file imports its distributions from here."""

from bloodjax.tuning.space import choice, integer, log_uniform, uniform

__all__ = ["choice", "integer", "log_uniform", "uniform"]
