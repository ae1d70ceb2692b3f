import json

import pytest

from bloodjax import config as config_lib
from bloodjax.config import renaming, values
from bloodjax.errors import UserError
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg


@pytest.fixture
def renamed(monkeypatch):
    """Replaces the table of renamed keys; the value lists the lines that were logged."""
    lines = []
    monkeypatch.setattr(renaming.console, "log_info", lines.append)
    for module in (renaming, values):
        monkeypatch.setattr(module, "RENAMED", {"model.arch": "model.name", "n": "seed"})
    renaming._log_renamed.cache_clear()
    return lines


def test_an_old_key_is_read_from_a_config_file_and_an_override(config_file, renamed):
    body = "def get_config():\n c = settings.defaults()\n c.model.arch = 'vgg16'\n c.n = 2\n"
    path = config_file(f"{body} return c\n")
    assert config_lib.load(path) == config_lib.validate({"seed": 2, "model": {"name": "vgg16"}})
    assert sorted(renamed) == [
        "config.model.arch was renamed to config.model.name; the old name still works",
        "config.n was renamed to config.seed; the old name still works",
    ]
    assert config_lib.load(path, ["n=3", "model.arch=resnet50"]).seed == 3
    assert config_lib.load(path, ["model.arch=resnet50"]).model.name == "resnet50"
    assert config_lib.load(path, ["seed=4"]).seed == 4
    assert len(renamed) == 2


def test_an_old_key_is_read_from_json(tmp_path, renamed):
    config = config_lib.validate({"seed": 5}).to_dict()
    config["n"] = config.pop("seed")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert config_lib.load_json(tmp_path / "config.json").seed == 5
    assert len(renamed) == 1


def test_the_config_of_an_older_run_is_read(tmp_path):
    source = PretrainedCfg("hf:a/b", "timm", "tf", licence="mit")
    config = config_lib.validate({"model": {"name": "resnet50", "variant": "keras"}})
    config = config_lib.with_source(config, source)
    old = config.to_dict()
    old["model"]["name"] = "resnet_50"
    old["model"]["flavour"] = old["model"].pop("variant")
    for new, before in (("variant", "flavour"), ("naming", "rules")):
        old["model"]["source"][before] = old["model"]["source"].pop(new)
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert config_lib.load_json(tmp_path / "config.json") == config


def test_oversample_is_the_old_name_of_balanced_sampling(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(renaming.console, "log_info", lines.append)
    renaming._log_renamed.cache_clear()
    content = config_lib.defaults().to_dict()
    del content["data"]["sampling"]
    for value, name in ((False, "natural"), (True, "balanced")):
        content["data"]["oversample"] = value
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert config_lib.load_json(tmp_path / "config.json").data.sampling == name
        assert len(lines) == value, "what nobody wrote is not logged"
    assert "config.data.oversample was renamed to config.data.sampling" in lines[0]
    for text in ("True", "true"):
        assert (
            config_lib.load("quickstart", [f"data.oversample={text}"]).data.sampling == "balanced"
        )
    with pytest.raises(
        UserError, match=r"config\.data\.oversample is 'yes', expected False or True"
    ):
        config_lib.load("quickstart", ["data.oversample=yes"])


def test_an_old_key_beside_the_new_one(renamed):
    with pytest.raises(UserError, match=r"config\.n was renamed to config\.seed, .*one of them"):
        config_lib.validate({"seed": 1, "n": 2})
    assert config_lib.validate({"seed": 2, "n": 2}).seed == 2


def test_every_renamed_key_has_a_present_name():
    current = set(values.default_values())
    assert set(renaming.RENAMED.values()) <= current
    assert not set(renaming.RENAMED) & current
