"""The config of a run: default values, loading, validation, and parsed values."""

from bloodjax.config.comparison import changes, differences, resumed
from bloodjax.config.defaults import PHASES, Config, defaults
from bloodjax.config.load import (
    get_config,
    load,
    load_json,
    to_json,
    validate,
    with_learning_rates,
    with_reading,
    with_source,
    with_values,
)
from bloodjax.config.parsed import (
    LEAVE_ONE_GROUP_OUT,
    SplitSource,
    augmentation,
    auto_rates,
    distortions,
    read_options,
    sampling_exponent,
    split_source,
    teacher_folders,
    training_size,
)
from bloodjax.config.python_file import call_in_file
from bloodjax.config.values import flatten

__all__ = [
    "LEAVE_ONE_GROUP_OUT",
    "PHASES",
    "Config",
    "SplitSource",
    "augmentation",
    "auto_rates",
    "call_in_file",
    "changes",
    "defaults",
    "differences",
    "distortions",
    "flatten",
    "get_config",
    "load",
    "load_json",
    "read_options",
    "resumed",
    "sampling_exponent",
    "split_source",
    "teacher_folders",
    "to_json",
    "training_size",
    "validate",
    "with_learning_rates",
    "with_reading",
    "with_source",
    "with_values",
]
