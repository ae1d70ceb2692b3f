"""Tests of bloodjax/tuning/trial_data.py, with two images of noughts."""

import json
import os
import shutil

import pytest

from bloodjax import config as config_lib
from bloodjax.data import fingerprint
from bloodjax.training import saved_splits
from bloodjax.tuning.trial_data import TrialData


@pytest.fixture
def shared(make_config, splits, tmp_path):
    """The images of a sweep that has drawn its splits."""
    data = TrialData(make_config(), tmp_path)
    data.read(make_config(), resumes=False)
    return data


def test_images_stay_until_another_size_is_asked_for(shared, make_config, splits):
    first, rate = make_config(), make_config(**{"phases.finetune.learning_rate": 0.1})
    assert shared.read(first) is shared.read(rate)
    assert shared.read(make_config(**{"data.image_size": 48})).train.images.shape == (2, 48, 48, 3)
    shared.read(first)
    assert splits == [(32, False), (48, True), (32, True)]


@pytest.mark.parametrize("size", [32, 48])
def test_a_trial_gets_the_splits_with_hashes_of_its_own_images(shared, make_config, tmp_path, size):
    folder, config = tmp_path / "trial", make_config(**{"data.image_size": size})
    folder.mkdir()
    found = shared.prepare(config, folder)
    assert config_lib.load_json(folder / "config.json") == config
    assert json.loads((folder / "audit/audit.json").read_text()) == {}
    stored = json.loads((folder / saved_splits.SPLITS_FILE).read_text())
    assert found.train.images.shape[1] == size
    hashes = fingerprint.to_text(fingerprint.of_images(found.train.images))
    assert stored["pixels"] == {"train": hashes}
    is_link = os.path.samefile(folder / saved_splits.SPLITS_FILE, tmp_path / "splits.json")
    assert is_link == (size == 32)


def test_splits_are_copied_where_the_file_system_has_no_links(
    shared, make_config, tmp_path, monkeypatch
):
    def fail(*_):
        raise OSError("no links")

    monkeypatch.setattr(os, "link", fail)
    (tmp_path / "trial").mkdir()
    shared.prepare(make_config(), tmp_path / "trial")
    for name in ("splits.json", "audit/audit.json"):
        own, of_sweep = tmp_path / "trial" / name, tmp_path / name
        assert own.read_bytes() == of_sweep.read_bytes()
        assert not os.path.samefile(own, of_sweep)


def test_a_trial_that_goes_on_keeps_what_it_has(shared, make_config, tmp_path):
    (tmp_path / "trial").mkdir()
    shared.prepare(make_config(), tmp_path / "trial")
    shutil.rmtree(tmp_path / "trial/audit")
    shared.prepare(make_config(), tmp_path / "trial")
    assert not (tmp_path / "trial/audit").exists()
