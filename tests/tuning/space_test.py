"""Tests of bloodjax/tuning/space.py."""

import pytest

from bloodjax import config as config_lib
from bloodjax import tuning
from bloodjax.config import recipes
from bloodjax.errors import UserError
from bloodjax.tuning import space as space_lib
from bloodjax.tuning.space import Range, lacking, own_values

RATE = "phases.finetune.learning_rate"


@pytest.fixture
def write(tmp_path):
    """Writes a space file whose get_space() returns what is given as text."""

    def space(returned):
        path = tmp_path / "space.py"
        path.write_text(
            f"from bloodjax.tuning import *\n\n\ndef get_space():\n    return {returned}\n"
        )
        return str(path)

    return space


def test_a_file_names_keys_and_distributions(write, make_config):
    path = write(
        "{'phases.finetune.learning_rate': log_uniform(1e-4, 1e-2), 'ema': uniform(0, 0.5), "
        "'batch_size': integer(8, 64, log=True), 'model.head.hidden': choice((), (32, 16)), "
        "'augment': choice('none', 'd4')}"
    )
    space = space_lib.load(path, make_config())
    assert {key: each.describe() for key, each in space.items()} == {
        RATE: "log_uniform(0.0001, 0.01)",
        "ema": "uniform(0, 0.5)",
        "batch_size": "integer(8, 64, log=True)",
        "model.head.hidden": "choice((), (32, 16))",
        "augment": "choice('none', 'd4')",
    }
    assert space["model.head.hidden"].labels == ("()", "(32, 16)")
    assert space[RATE].contains(1e-3)
    assert not space[RATE].contains("auto")


@pytest.mark.parametrize("name", space_lib.names())
@pytest.mark.parametrize("recipe", ["quickstart", "efficientnet_lite0", "convnext_base"])
def test_a_packaged_space_has_the_own_values_of_recipes(name, recipe):
    config = config_lib.load(recipes.locate(recipe), ["data.train=synthetic:100"])
    space = space_lib.load(name, config)
    own = own_values(config, space)
    assert own is not None
    assert config_lib.flatten(config_lib.with_values(config, own)) == config_lib.flatten(config)


def test_a_config_whose_own_value_is_not_in_the_space_has_no_own_values(make_config):
    space = {"batch_size": tuning.choice(8, 64)}
    assert own_values(make_config(), space) is None
    assert lacking(make_config(), space) == {"batch_size": 16}
    assert own_values(make_config(batch_size=64), space) == {"batch_size": 64}


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("log_uniform(0, 1)", "line 5: ValueError: low is 0, expected a number above 0 on a log"),
        ("uniform(2, 1)", "ValueError: low is 2 and high 1, expected low < high"),
        ("choice(1)", "choice() has fewer than two values"),
        ("choice('a', 'b', 'a')", "choice() has a more than once"),
        ("[]", "get_space() returns list, expected a dictionary"),
        ("{}", "get_space() returns dict, expected a dictionary"),
        ("{'loss.label_smoothing': (0, 1)}", "loss.label_smoothing is (0, 1), expected uniform, "),
        ("{'loss.smoothing': uniform(0, 1)}", "unknown config key 'loss.smoothing': did you mean "),
        ("{1: uniform(0, 1)}", "unknown config key 1: expected one of "),
        ("{'loss.label_smoothing': uniform(0, 2)}", "config.loss.label_smoothing is 2"),
        ("{'batch_size': uniform(8, 16)}", "config.batch_size is"),
        ("{'loss.name': choice('focal', 'x')}", "config.loss.name is 'x', expected"),
        ("{'data.test': choice('0.1', '0.2')}", "data.test cannot be swept"),
        ("{'seed': integer(0, 9)}", "seed cannot be swept"),
        (
            "{'learning_rate': choice(1e-3, 1e-2), "
            "'phases.head.learning_rate': choice(1e-3, 1e-2)}",
            "phases.head.learning_rate would have no effect",
        ),
        ("{'early_stopping.metric': choice('loss', 'ece')}", "cannot be swept"),
    ],
)
def test_a_mistake_is_one_line_with_the_file(write, make_config, returned, message):
    path = write(returned)
    with pytest.raises(UserError) as error:
        space_lib.load(path, make_config())
    assert str(error.value).startswith(f"--space={path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("high", [0.5, True])
def test_integers_are_integers(high):
    with pytest.raises(ValueError, match="expected integers"):
        Range(0, high, whole=True)


def test_a_missing_file_names_the_packaged_ones(make_config):
    with pytest.raises(UserError, match=r"--space=none\.py: no such file; .* default"):
        space_lib.load("none.py", make_config())
