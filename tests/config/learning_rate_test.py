import pytest

from bloodjax import config as config_lib
from bloodjax.errors import UserError


def rates(*overrides):
    config = config_lib.load("quickstart", overrides)
    assert config.learning_rate == ""
    return [config.phases[name].learning_rate for name in config_lib.PHASES]


def test_one_key_sets_the_rate_of_both_phases():
    assert rates("learning_rate=3e-4") == [3e-4, 3e-4]
    assert rates("learning_rate=auto") == ["auto", "auto"]


def test_a_phase_can_have_a_rate_that_is_found():
    head, finetune = rates("phases.finetune.learning_rate=auto")
    assert finetune == "auto"
    assert isinstance(head, float)
    assert rates("phases.head.learning_rate=1")[0] == 1.0
    config = config_lib.load("quickstart", ["phases.finetune.learning_rate=auto"])
    assert config_lib.auto_rates(config) == ("finetune",)
    found = config_lib.with_learning_rates(config, {"finetune": 0.25})
    assert found.phases.finetune.learning_rate == 0.25
    assert config_lib.auto_rates(found) == ()


@pytest.mark.parametrize("value", ["auto", 0.5, "0.5"])
def test_a_config_file_can_set_it(value):
    config = config_lib.defaults()
    config.learning_rate = value
    validated = config_lib.validate(config)
    assert validated.phases.head.learning_rate in ("auto", 0.5)
    assert config_lib.differences(validated, config_lib.validate(validated)) == []


def test_a_stored_config_keeps_it(tmp_path):
    config = config_lib.load("quickstart", ["learning_rate=auto"])
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    assert config_lib.load_json(tmp_path / "config.json") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rate=fast", "config.learning_rate is 'fast', expected a number of at least 0"),
        ("learning_rate=-1", "config.learning_rate is '-1', expected a number of at least 0"),
        ("learning_rate=nan", "config.learning_rate is 'nan', expected a number of at least 0"),
        ("phases.head.learning_rate=fast", "is 'fast', expected a value of type float"),
        ("phases.head.learning_rate=-1", "is -1.0, expected a number of at least 0, or auto"),
    ],
)
def test_another_value_is_one_line(override, message):
    with pytest.raises(UserError) as error:
        config_lib.load("quickstart", [override])
    assert message in str(error.value)
