"""The config of a run: default values, loading, validation, and parsed values."""

from bloodjax.config.defaults import PHASES, Config, defaults
from bloodjax.config.load import (
    differences,
    get_config,
    load,
    load_json,
    resumed,
    to_json,
    validate,
    with_reading,
    with_scale,
    with_source,
)
from bloodjax.config.parsed import (
    SplitSource,
    augmentation,
    distortions,
    read_options,
    sampling_exponent,
    split_source,
    teacher_folders,
    training_size,
)

__all__ = [
    "PHASES",
    "Config",
    "SplitSource",
    "augmentation",
    "defaults",
    "differences",
    "distortions",
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
    "with_reading",
    "with_scale",
    "with_source",
]
