import json
import shutil

import numpy as np
import pytest

from bloodjax.data import packing, sources
from bloodjax.data.formats import array_record
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError

CELLS = render.render_dataset(24, 32)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "set"
    packing.pack(CELLS, folder, as_pixels=True, shards=2)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made, tmp_path / "set")


def edit(folder, **changes):
    path = folder / array_record.INDEX
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def everything(folder):
    return array_record.read_dataset(folder, 32).images[:]


def test_without_its_index_it_is_a_set_of_tensorflow_datasets(folder):
    (folder / array_record.INDEX).unlink()
    dataset = array_record.read_dataset(folder, 32)
    np.testing.assert_array_equal(dataset.images[:], CELLS.images)
    assert (dataset.names, dataset.classes) == (CELLS.names, CELLS.classes)
    assert set(dataset.splits) == {"train"}
    np.testing.assert_array_equal(dataset.labels, CELLS.labels)


def test_names_that_are_not_distinct_are_numbers_instead(folder, monkeypatch):
    (folder / array_record.INDEX).unlink()
    monkeypatch.setattr(
        "bloodjax.data.formats.tfds.parse_example", lambda *_: (b"", 0, {"name": "same"})
    )
    assert array_record.read_dataset(folder, 32).names[:2] == ("train/0", "train/1")


def test_a_label_without_a_class_is_an_error(folder, monkeypatch):
    (folder / array_record.INDEX).unlink()
    monkeypatch.setattr("bloodjax.data.formats.tfds.parse_example", lambda *_: (b"", 8, {}))
    with pytest.raises(UserError, match=r"00000-of-00002: record 0 .*: label 8, expected 0\.\.7"):
        array_record.read_dataset(folder, 32)


@pytest.mark.parametrize("file", ["cells-train.array_record-00001-of-00002"])
def test_a_missing_or_truncated_shard_is_named(folder, file):
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"{file}: is damaged, \d+ bytes, expected \d+"):
        array_record.read_dataset(folder, 32)
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"{file}: no such file, expected the shards of"):
        array_record.read_dataset(folder, 32)
    (folder / array_record.INDEX).unlink()
    with pytest.raises(UserError, match=f"{file}: no such file"):
        array_record.read_dataset(folder, 32)


def test_a_damaged_record_is_named_when_it_is_read(folder):
    path = folder / "cells-train.array_record-00000-of-00002"
    damaged = bytearray(path.read_bytes())
    damaged[5000] ^= 1
    path.write_bytes(damaged)
    dataset = array_record.read_dataset(folder, 32)
    assert dataset.images[12:].shape == (12, 32, 32, 3)  # the other shard's
    with pytest.raises(UserError, match="00000-of-00002: is damaged"):
        dataset.images[:12]


BAD = {
    "format": ({"format": 2}, "has format 2 of another version, expected 1"),
    "records": ({"records": [99] * 24}, "records are not 24 numbers below 24"),
    "records are fewer": ({"records": [0]}, "records are not 24 numbers"),
    "labels": ({"labels": [-1] * 24}, "labels are not 24 numbers below 8"),
    "labels are text": ({"labels": ["a"] * 24}, "is damaged"),
    "names twice": ({"names": ["a"] * 24}, "with distinct names"),
    "names are numbers": ({"names": [*range(24)]}, "24 texts each"),
    "splits": ({"splits": ["train"]}, "names, splits and groups are not 24 texts each"),
    "groups": ({"groups": [1] * 24}, "is damaged"),
    "no shards": ({"shards": {}}, "are not 24 numbers below 0"),
    "shards of another kind": ({"shards": {"a": 3}}, "is damaged"),
    "tally": ({"tally": {"deep": 1, "scale": "9"}}, "is damaged .'9' is the scale of 1 images"),
    "tally of text": ({"tally": {"oriented": "3"}}, "is damaged .oriented is '3'"),
    "tally of more": ({"tally": {"x": 3}}, "is damaged"),
    "huge": ({"records": [10**30] * 24}, "is damaged"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_a_damaged_index_is_one_line_that_names_it(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(UserError, match=message) as found:
        array_record.read_dataset(folder, 32)
    assert str(found.value).startswith(f"{folder / array_record.INDEX}: ")


def test_an_index_names_shards_of_its_own_folder_only(folder):
    index = json.loads((folder / array_record.INDEX).read_text())
    edit(folder, shards={f"../../{name}": told for name, told in index["shards"].items()})
    np.testing.assert_array_equal(everything(folder), CELLS.images)


def test_random_damage_is_read_or_refused_in_one_line(made, folder):
    rng = np.random.default_rng(0)
    refused, files = [], sorted(made.iterdir())
    for trial in range(150):
        original = files[trial % len(files)]
        damaged = bytearray(original.read_bytes())
        # Most of a small shard is padding.
        for place in rng.integers(0, min(len(damaged), 40_000), 3):
            damaged[place] = rng.integers(256)
        (folder / original.name).write_bytes(damaged)
        try:
            everything(folder)
        except UserError as error:
            refused.append(str(error))
        shutil.copy(original, folder / original.name)
    assert len(refused) > 50
    assert all(line.startswith(str(folder)) for line in refused)


def test_fingerprint_follows_content_and_not_the_place(folder, made, tmp_path):
    assert array_record.fingerprint(folder) == array_record.fingerprint(made)
    other = CELLS.images.copy()
    other[3, 0, 0, 0] ^= 1
    changed = CELLS.take(np.arange(24))
    object.__setattr__(changed, "images", other)
    packing.pack(changed, tmp_path / "changed", as_pixels=True, shards=2)
    assert array_record.fingerprint(tmp_path / "changed") != array_record.fingerprint(made)
    (folder / ".DS_Store").write_bytes(b"junk")
    before = array_record.fingerprint(folder)
    assert before == array_record.fingerprint(made)
    labels = folder / "label.labels.txt"
    labels.write_text(labels.read_text().replace("platelet", "thrombos"))
    renamed = array_record.fingerprint(folder)
    assert renamed != before
    before = renamed
    (folder / "cells-train.array_record-00001-of-00002").write_bytes(b"")
    assert array_record.fingerprint(folder) != before


def test_only_sets_are_sets(folder, tmp_path):
    assert array_record.is_shards(folder)
    assert not array_record.is_shards(tmp_path)
    assert not array_record.is_shards(tmp_path / "nowhere")
    (tmp_path / "index.json").touch()  # of something else
    assert not array_record.is_shards(tmp_path)
    (folder / array_record.INFO).unlink()
    with pytest.raises(UserError, match=r"set: has no dataset_info.json, expected all files"):
        sources.load(str(folder), 32)


def test_native_size(folder, tmp_path):
    assert array_record.native_size(folder) == 32
    packing.pack(CELLS, tmp_path / "png", as_pixels=False)
    assert array_record.native_size(tmp_path / "png") is None
