"""Tests of bloodjax/config/parsed.py."""

import pytest

from bloodjax import config as config_lib
from bloodjax.augment import policy
from bloodjax.config import parsed


@pytest.mark.parametrize(
    ("value", "fraction"),
    [("0.25", 0.25), ("0", 0.0), ("auto", None), ("a.npz", None), (0.5, 0.5)],
)
def test_a_split_is_a_fraction_of_train_or_a_spec(value, fraction):
    source = parsed.parse_split_source(value)
    assert source.fraction == fraction
    assert source.spec == ("a.npz" if value == "a.npz" else None)
    assert source.is_auto == (value == "auto")


def test_parsed_values_of_a_config(make_config):
    config = make_config(
        **{
            "augment": "flip|mixup(0.2)",
            "data.validation": "a.npz",
            "data.test": "0.2",
            "data.validation_distortion": "dust:2-3",
        }
    )
    assert config_lib.augmentation(config) == policy.parse("flip|mixup(0.2)")
    assert config_lib.split_source(config, "validation").spec == "a.npz"
    assert config_lib.split_source(config, "test").fraction == 0.2
    assert config_lib.distortions(config) == {"dust": (2, 3)}
    assert config_lib.distortions(make_config()) == {}


def test_a_policy_is_parsed_once_in_a_process(make_config, monkeypatch):
    calls, parse = [], policy.parse
    parsed._policy.cache_clear()
    monkeypatch.setattr(policy, "parse", lambda text: calls.append(text) or parse(text))
    config = make_config(augment="d4|erase(0.5, p=0.25)")
    first = config_lib.augmentation(config)
    assert config_lib.augmentation(make_config(augment=config.augment, seed=3)) is first
    assert calls == [config.augment]


def test_the_size_of_an_epoch(make_config):
    changes = {"phases.finetune.sizes": "16:0.4,24:0.7,32", "phases.finetune.epochs": 10}
    config = make_config(**changes)
    found = [config_lib.training_size(config, "finetune", epoch) for epoch in range(10)]
    assert found == [16] * 4 + [24] * 3 + [None] * 3  # None is the run's own size
    assert config_lib.training_size(config, "head", 0) is None
    smaller = make_config(**{"phases.head.sizes": "24"})
    assert config_lib.training_size(smaller, "head", 0) == 24


@pytest.mark.parametrize(
    "text", ["a", "32,", "32:0.5", "32:0.5,24:0.4,16", "32:0.5,24:0.5,16", "32:0,16", "32:nan,16"]
)
def test_sizes_that_are_none(text):
    with pytest.raises(ValueError, match=r"invalid literal|do not rise"):
        parsed.parse_sizes(text)


def test_the_folders_of_a_teacher(make_config):
    assert config_lib.teacher_folders(make_config()) == ()
    config = make_config(**{"distill.workdir": "a/b, c"})
    assert config_lib.teacher_folders(config) == ("a/b", "c")
