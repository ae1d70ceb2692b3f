import json
import pathlib
import re

import ml_collections
import pytest

from bloodjax import config as config_lib
from bloodjax.errors import UserError

from .keys import nested

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


def test_the_defaults_pass_every_check():
    checked = config_lib.validate(config_lib.defaults())
    assert checked.to_dict() == config_lib.defaults().to_dict()
    assert isinstance(checked, ml_collections.FrozenConfigDict)


def test_reads_a_file_and_then_the_overrides(config_file):
    path = config_file(
        "def get_config():\n c = settings.defaults()\n c.batch_size = 8\n c.seed = 3\n return c\n"
    )
    config = config_lib.load(
        path,
        [
            "seed=4",
            "data.train=cells=1.npz",
            "data.test=0.2",
            "model.head.batch_norm=false",
            "model.head.hidden=(32,)",
            "model.std=1,1,1",
            "data.classes=a,b",
            "phases.head.learning_rate=1",
        ],
    )
    assert (config.batch_size, config.seed) == (8, 4)
    assert (config.data.train, config.data.test) == ("cells=1.npz", "0.2")
    assert config.model.head.batch_norm is False
    assert (tuple(config.model.head.hidden), tuple(config.model.std)) == ((32,), (1, 1, 1))
    assert tuple(config.data.classes) == ("a", "b")
    assert config.phases.head.learning_rate == 1.0
    assert config.data.image_size == config_lib.defaults().data.image_size


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_config_at_hand_loads(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if path.stem == "common":
        with pytest.raises(UserError, match="get_config"):
            config_lib.load(str(path))
    else:
        assert config_lib.load(str(path)).model.name


@pytest.mark.parametrize(
    ("value", "exponent"),
    [("natural", 1), ("sqrt", 0.5), ("balanced", 0), ("0.3", 0.3), (0.3, 0.3), (0, 0), (1.0, 1)],
)
def test_sampling_is_a_name_or_an_exponent(value, exponent):
    config = config_lib.validate(nested("data.sampling", value))
    assert config_lib.sampling_exponent(config) == exponent
    assert config_lib.validate(config) == config


def test_a_run_of_an_earlier_version_reads_the_upper_8_of_16_bits(tmp_path):
    content = config_lib.defaults().to_dict()
    for key in ("bits", "scale"):
        del content["data"][key]
    (tmp_path / "config.json").write_text(json.dumps(content))
    stored = config_lib.load_json(tmp_path / "config.json")
    assert config_lib.read_options(stored).bits == "16"
    assert config_lib.read_options(config_lib.defaults()).bits == "auto"


def test_a_rate_of_all_phases_and_one_of_a_phase_are_not_given_together():
    with pytest.raises(UserError, match=r"phases.head.learning_rate would have no effect"):
        config_lib.load("quickstart", ["phases.head.learning_rate=1e-3", "learning_rate=auto"])
    config = config_lib.load("quickstart", ["learning_rate=2e-3"])
    assert (config.phases.head.learning_rate, config.phases.finetune.learning_rate) == (2e-3, 2e-3)


def test_the_scale_is_filled_in_by_the_run():
    with pytest.raises(UserError, match=r"data.scale is filled in by the run: expected data.bits"):
        config_lib.load("quickstart", ["data.scale=12"])
    with pytest.raises(UserError, match=r"first_label is filled in by the run: expected data.cl"):
        config_lib.load("quickstart", ["data.first_label=1"])
    options = config_lib.read_options(config_lib.load("quickstart", ["data.bits=12"]))
    assert options.bits == "12"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x = (\n", "line 2: "),
        ("x = 1\n", r"no get_config\(\)"),
        ("def get_config():\n c = settings.defaults()\n c.seed = 'a'\n return c\n", "seed|int"),
        ("def get_config():\n pass\n", "ConfigDict"),
    ],
)
def test_a_wrong_config_file(config_file, body, expected):
    path = config_file(body)
    with pytest.raises(UserError, match=f"--config={re.escape(path)}: .*({expected})"):
        config_lib.load(path)


def test_a_config_file_with_an_unknown_key(config_file):
    path = config_file("def get_config():\n c = settings.defaults()\n c.epoch = 1\n return c\n")
    with pytest.raises(UserError, match=r"unknown config key config\.epoch"):
        config_lib.load(path)


def test_a_config_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"nope\.py: no such file"):
        config_lib.load(str(tmp_path / "nope.py"))
    (tmp_path / "config.txt").write_text("")
    with pytest.raises(UserError, match=r"config\.txt: expected a Python file"):
        config_lib.load(str(tmp_path / "config.txt"))


def test_json_gives_the_same_config_back(tmp_path):
    config = config_lib.validate(nested("model.head.hidden", (16, 8)) | {"seed": 5})
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    assert config_lib.load_json(tmp_path / "config.json") == config
    assert json.loads(config_lib.to_json(config))["model"]["head"]["hidden"] == [16, 8]


@pytest.mark.parametrize("text", ["{", "[1]", "null", '{"phases": 3}', '{"seed": -1}', "\xff"])
def test_json_that_is_no_config(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.json: .*(expected|unknown)"):
        config_lib.load_json(tmp_path / "config.json")


def test_what_a_run_fills_in_is_not_set_by_hand(config_file):
    path = config_file("def get_config():\n return settings.defaults()\n")
    with pytest.raises(UserError, match=r"config\.model\.source\.mean is filled in by the run"):
        config_lib.load(path, ["model.source.mean=0,0,0"])


def test_values_are_set_without_a_change_of_the_rest(make_config):
    config = make_config()
    rate = "phases.finetune.learning_rate"
    changed = config_lib.with_values(config, {rate: 0.5, "model.head.hidden": (8,)})
    assert sorted(config_lib.differences(config, changed)) == [
        "model.head.hidden: (16,) -> (8,)",
        f"{rate}: {config.phases.finetune.learning_rate} -> 0.5",
    ]
    with pytest.raises(UserError, match=r"config\.batch_size is 0, expected"):
        config_lib.with_values(config, {"batch_size": 0})
