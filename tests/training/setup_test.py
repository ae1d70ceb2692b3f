"""Tests of what bloodjax/training/setup.py checks before a run."""

import numpy as np
import pytest

from bloodjax.data.dataset import Dataset
from bloodjax.errors import UserError
from bloodjax.training import setup
from bloodjax.training.input_pipeline import Splits


def dataset(labels):
    labels, none = np.array(labels, np.int32), ("",) * len(labels)
    names = tuple(map(str, range(len(labels))))
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    return Dataset(images, labels, names, ("a", "b"), none, none)


MIXED, HEALTHY = [[0, 1], [1, 0]], [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("metric", "train", "validation", "undefined"),
    [
        ("auc", [0, 1], [0, 0], True),
        ("auc", [0, 1], [0, 1], False),
        ("balanced_accuracy", [0, 1], [0, 0], False),
        ("balanced_accuracy", MIXED, HEALTHY, True),
        ("balanced_accuracy", MIXED, MIXED, False),
        ("f1_macro", MIXED, HEALTHY, False),
    ],
)
def test_a_metric_that_is_not_defined_is_refused(make_config, metric, train, validation, undefined):
    config = make_config(**{"early_stopping.metric": metric})
    splits = Splits(dataset(train), dataset(validation), None)
    if not undefined:
        setup._check_monitored(config, splits)
        return
    with pytest.raises(UserError, match=rf"metric is '{metric}', expected another, such as loss"):
        setup._check_monitored(config, splits)
