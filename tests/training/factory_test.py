"""Tests of what bloodjax/training/factory.py says of a run."""

import pytest

from bloodjax.training import factory


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"phases.head.epochs": 0, "phases.finetune.freeze": "none"}, "from random weights"),
        (
            {"phases.head.epochs": 1, "phases.head.freeze": "backbone"},
            "from random weights, which config.phases.head.freeze=backbone leaves as they are; ",
        ),
        (
            {"phases.head.epochs": 0, "phases.finetune.freeze": "batchnorm"},
            "from random weights, which config.phases.finetune.freeze=batchnorm leaves as they",
        ),
    ],
)
def test_frozen_random_weights_are_told(make_config, changes, line):
    found = factory.origin(make_config(**changes))
    assert found.startswith(line)
    assert ("--config.phases.head.epochs=0" in found) is (found != "from random weights")
