"""A trained run's sources under other names, and images that it was trained on."""

import dataclasses
import json
import pathlib
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from bloodjax import config as config_lib
from bloodjax.data import fingerprint, images, packing, sources
from bloodjax.data import splits as splits_lib
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.training import input_pipeline, saved_splits
from bloodjax.training.workdir import open_config

SIZE = 32
CLASSES = ("ill", "well")


def put(root, n, seed=0):
    for i, image in enumerate(render.render_dataset(n, SIZE, seed=seed).images):
        path = root / CLASSES[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(image))


@pytest.fixture
def run(make_config, tmp_path, monkeypatch):
    """A run on the folder `data` in the current folder: its config and its `splits.json`."""
    monkeypatch.chdir(tmp_path)
    put(pathlib.Path("data"), 48)
    config = make_config(**{"data.train": "data"})
    pathlib.Path("run").mkdir()
    input_pipeline.prepare_splits(config, tmp_path / "run", resumes=False)
    (tmp_path / "run/config.json").write_text(config_lib.to_json(config))
    return config, tmp_path / "run/splits.json"


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(input_pipeline.console, "log_info", lines.append)
    return lines


@pytest.mark.parametrize("spec", ["data/", "./data", "ABSOLUTE", "moved", "../data"])
def test_the_same_data_under_another_spec_resumes(run, make_config, said, monkeypatch, spec):
    _, file = run
    folder = file.parent.parent / "data"
    (folder / "notes.txt").write_text("a note beside the class folders")
    if spec == "ABSOLUTE":
        spec = str(folder)
    if spec == "moved":
        folder.rename(folder.with_name("moved"))
    if spec == "../data":
        (folder.parent / "sub").mkdir()
        monkeypatch.chdir(folder.parent / "sub")
    again = open_config(make_config(**{"data.train": spec}), file.parent)
    assert again.data.train == spec
    splits = input_pipeline.prepare_splits(again, file.parent, resumes=True)
    saved = json.loads(file.read_text())["parts"]
    assert {name: list(dataset.names) for name, dataset in splits.items()} == saved
    assert said == [f"{spec}: the same data as the run's data"]
    name, dataset = saved_splits.select(again, file, CLASSES, spec, None)
    assert (name, list(dataset.names)) == ("test", saved["test"])
    assert said[1] == f"{spec}: the same data as the run's data; its test split is taken"


def test_other_data_under_the_same_names_do_not_resume(run, make_config):
    config, file = run
    shutil.rmtree("data")
    put(pathlib.Path("data"), 48, seed=1)
    with pytest.raises(UserError, match=r"data: has changed since .*splits.json was written"):
        input_pipeline.prepare_splits(config, file.parent, resumes=True)
    pathlib.Path("data").rename("new")
    other = open_config(make_config(**{"data.train": "new"}), file.parent)
    with pytest.raises(UserError, match=r"new: has other images than data when .*splits.json"):
        input_pipeline.prepare_splits(other, file.parent, resumes=True)
    name, dataset = saved_splits.select(config, file, CLASSES, "new", None)
    assert (name, len(dataset)) == ("new", 48)


def test_a_fraction_and_a_source_are_different_configs(run, make_config):
    _, file = run
    with pytest.raises(UserError, match=r"another config \(data.test: 'auto' -> 'data'\)"):
        open_config(make_config(**{"data.train": "data", "data.test": "data"}), file.parent)


def as_earlier(file):
    """Rewrites `splits.json` as earlier versions wrote it."""
    content = json.loads(file.read_text())
    earlier = fingerprint.earlier_of_archive(pathlib.Path("data"))
    content["sources"] = {
        name: {"spec": "data", "fingerprint": earlier} for name in content["sources"]
    }
    kept = {key: content[key] for key in ("seed", "sources", "parts")}
    file.write_text(json.dumps(kept))


def test_a_run_of_an_earlier_version_resumes(run):
    config, file = run
    parts = json.loads(file.read_text())["parts"]
    as_earlier(file)
    splits = input_pipeline.prepare_splits(config, file.parent, resumes=True)
    assert {name: list(dataset.names) for name, dataset in splits.items()} == parts
    (pathlib.Path("data/ill/0.png")).write_bytes(b"")
    with pytest.raises(UserError, match=r"has changed since|not a readable image"):
        input_pipeline.prepare_splits(config, file.parent, resumes=True)


def test_a_split_is_found_where_its_source_has_moved(run, make_config, monkeypatch, tmp_path):
    config, file = run
    names = json.loads(file.read_text())["parts"]["validation"]
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")  # "data" is found by its absolute path
    assert list(saved_splits.recall(config, file, CLASSES, "validation").names) == names
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"data: no such file or folder"):
        saved_splits.recall(config, file, CLASSES, "validation")
    there = make_config(**{"data.train": "../moved"})
    assert list(saved_splits.recall(there, file, CLASSES, "validation").names) == names


def wrapped(kind, path):
    """The images of the folder `data` in another wrapping."""
    if kind == "zip":
        path = path.with_suffix(".zip")
        with zipfile.ZipFile(path, "w") as file:
            for each in sorted(pathlib.Path("data").rglob("*.png")):
                file.write(each, f"renamed/{each.parent.name}/x{each.name}")
        return str(path)
    if kind == "bmp":
        for each in sorted(pathlib.Path("data").rglob("*.png")):
            out = pathlib.Path("bmp") / each.parent.name / f"{each.stem}.bmp"
            out.parent.mkdir(parents=True, exist_ok=True)
            Image.open(each).save(out)
        return "bmp"
    dataset = sources.load("data", SIZE)
    if kind == "npz":
        arrays = {"labels": dataset.labels, "classes": np.array(dataset.classes)}
        np.savez(path, images=dataset.images, **arrays)
        return str(path) + ".npz"
    packing.pack(dataset, path, as_pixels=True)
    return str(path)


@pytest.mark.parametrize("kind", ["zip", "npz", "packed", "bmp"])
def test_images_trained_on_are_known_in_any_wrapping(run, make_config, tmp_path, kind):
    config, file = run
    spec = wrapped(kind, tmp_path / "copy")
    _, dataset = saved_splits.select(config, file, CLASSES, spec, None)
    assert len(dataset) == 48

    def read_again(other):
        return saved_splits.select(other, file, CLASSES, spec, None)[1]

    runs = {file.parent: config}
    seen, unknown = saved_splits.trained_on(runs, CLASSES, dataset, config, read_again)
    assert not unknown
    parts = json.loads(file.read_text())["parts"]
    source = sources.load("data", SIZE)
    trained = {
        image.tobytes()
        for image, name in zip(source.images, source.names, strict=True)
        if name in parts["train"]
    }
    assert seen.tolist() == [image.tobytes() in trained for image in dataset.images]
    assert seen.sum() == len(parts["train"])
    # The same, for images that were read at the size of another member of an ensemble.
    smaller = make_config(**{"data.train": "data", "data.image_size": 24})
    _, small = saved_splits.select(smaller, file, CLASSES, spec, None)
    again, _ = saved_splits.trained_on(runs, CLASSES, small, smaller, lambda _: dataset)
    assert again.tolist() == seen.tolist()


def test_at_a_site_that_frames_cells_both_its_own_images_and_those_of_training_are_known(run):
    config, file = run
    _, train = saved_splits.select(config, file, CLASSES, "data", "train")
    framed = dataclasses.replace(train, images=255 - train.images)
    at_site = config_lib.with_reading(config, fit="24px")
    runs = {file.parent: config}
    seen, _ = saved_splits.trained_on(runs, CLASSES, framed, at_site, lambda _: train)
    assert seen.all()
    saved = splits_lib.load(file)
    hashes = fingerprint.of_images(framed.images[:3])
    splits_lib.write(file, saved | {splits_lib.ADAPTED_TO: fingerprint.to_text(np.sort(hashes))})
    others = dataclasses.replace(train, images=train.images // 2)
    seen, _ = saved_splits.trained_on(runs, CLASSES, framed, at_site, lambda _: others)
    assert seen.tolist() == [True] * 3 + [False] * (len(train) - 3)


def test_of_an_earlier_version_the_training_images_are_read(run):
    config, file = run
    _, dataset = saved_splits.select(config, file, CLASSES, "data", "train")
    as_earlier(file)
    runs = {file.parent: config}
    seen, unknown = saved_splits.trained_on(runs, CLASSES, dataset, config, lambda _: dataset)
    assert seen.all()
    assert not unknown
    shutil.rmtree("data")
    seen, unknown = saved_splits.trained_on(runs, CLASSES, dataset, config, lambda _: dataset)
    assert unknown == [file.parent]
    assert not seen.any()


def test_a_source_with_splits_gives_its_test_split_and_says_what_is_left(run, tmp_path):
    config, file = run
    put(tmp_path / "other/train", 24, seed=7)
    put(tmp_path / "other/test", 16, seed=8)
    name, dataset = saved_splits.select(config, file, CLASSES, str(tmp_path / "other"), None)
    assert (name, len(dataset)) == ("other-test", 16)
    assert "its own test split: 16 of 40 images" in dataset.reading.details
    left_out = {(entry.reason, entry.label): entry.count for entry in dataset.reading.left_out}
    assert left_out == {("of the split train", name): 12 for name in CLASSES}


def test_labels_without_names_need_an_order_that_is_known(run, tmp_path):
    config, file = run
    path = str(tmp_path / "other.npz")
    pixels = render.render_dataset(8, SIZE, seed=5).images
    np.savez(path, images=pixels, labels=np.arange(8) % 2)
    with pytest.raises(UserError, match=r"other.npz: names no classes, .* order of ill, well; exp"):
        saved_splits.select(config, file, CLASSES, path, None)
    np.savez(path, images=pixels, labels=np.arange(8) % 2, classes=["Well", "Ill"])
    _, dataset = saved_splits.select(config, file, CLASSES, path, None)
    assert dataset.labels.tolist() == [1, 0] * 4
    assert dataset.reading.details == ("Well taken as well", "Ill taken as ill")


def test_the_layout_of_another_source_can_be_stated(run, tmp_path):
    config, file = run
    for i, image in enumerate(render.render_dataset(8, SIZE, seed=6).images):
        path = tmp_path / "other" / CLASSES[i % 2] / ("anna", "bob")[i % 4 // 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(image))
    with pytest.raises(UserError, match="layout=class/group or group/class"):
        saved_splits.select(config, file, CLASSES, "other", None)
    _, dataset = saved_splits.select(config, file, CLASSES, "other", None, "class/group")
    assert (dataset.classes, set(dataset.groups)) == (CLASSES, {"anna", "bob"})


def test_a_table_is_known_again_when_its_images_have_moved(make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ["picture;type\n"]
    pathlib.Path("cells").mkdir()
    for i, image in enumerate(render.render_dataset(48, SIZE, seed=0).images):
        pathlib.Path(f"cells/{i}.png").write_bytes(images.encode_png(image))
        rows.append(f"{i}.png;{CLASSES[i % 2]}\n")
    pathlib.Path("labels.csv").write_text("".join(rows))
    values = {"data.train": "labels.csv", "data.images": "cells", "data.columns": "label=type"}
    config = make_config(**values)
    splits = input_pipeline.prepare_splits(config, tmp_path, resumes=False)
    pathlib.Path("cells").rename("elsewhere")
    file = tmp_path / "splits.json"
    with pytest.raises(UserError, match="cells: no such folder or zip"):
        saved_splits.select(config, file, CLASSES, "labels.csv", None)
    moved = config_lib.with_reading(config, images="elsewhere")
    name, found = saved_splits.select(moved, file, CLASSES, "labels.csv", None)
    assert (name, found.names) == ("test", splits.test.names)
    assert saved_splits.recall(moved, file, CLASSES, "train").names == splits.train.names
    assert not config_lib.differences(config, moved)
    assert config_lib.resumed(config, moved).data.images == "elsewhere"


def test_another_table_has_its_own_images(make_config, tmp_path, monkeypatch):
    """The run's folder has files of the same names, which must not be taken in their place."""
    monkeypatch.chdir(tmp_path)
    drawn = render.render_dataset(96, SIZE, seed=0).images
    for folder, part in {"cells": drawn[:48], "site": drawn[48:]}.items():
        pathlib.Path(folder).mkdir()
        for i, image in enumerate(part):
            pathlib.Path(f"{folder}/{i}.png").write_bytes(images.encode_png(image))
    rows = [f"{i}.png,{CLASSES[i % 2]}" for i in range(48)]
    pathlib.Path("labels.csv").write_text("\n".join(["path,label", *rows]))
    pathlib.Path("site/labels.csv").write_text("\n".join(["path,label", *rows[:24]]))
    config = make_config(**{"data.train": "labels.csv", "data.images": "cells"})
    input_pipeline.prepare_splits(config, tmp_path, resumes=False)

    def read(folder):
        found = saved_splits.select(
            config, tmp_path / "splits.json", CLASSES, "site/labels.csv", None, images=folder
        )[1]
        return found.images[found.names.index("2.png")]

    np.testing.assert_array_equal(read(None), drawn[50])
    np.testing.assert_array_equal(read("cells"), drawn[2])


def test_results_on_a_table_have_its_name():
    assert saved_splits.source_name("site/labels.csv") == "labels"
    assert saved_splits.source_name("hf-dataset:lab/cells:large") == "cells-large"


@pytest.fixture
def patients(make_config, tmp_path):
    """A run on a file with groups: its config, its `splits.json` and the file."""
    drawn = render.render_dataset(96, SIZE, seed=0)
    cells = drawn.take(drawn.labels < 2)
    keys = np.array([f"P{i // 2}" for i in range(len(cells))])
    file = tmp_path / "patients.npz"
    np.savez(file, images=cells.images, labels=cells.labels, classes=CLASSES, groups=keys)
    config = make_config(**{"data.train": str(file)})
    (tmp_path / "run").mkdir()
    input_pipeline.prepare_splits(config, tmp_path / "run", resumes=False)
    return config, tmp_path / "run/splits.json", file


def test_groups_that_a_run_was_trained_on_are_known_in_another_file(patients, tmp_path):
    config, splits_file, file = patients
    runs = {splits_file.parent: config}
    known = saved_splits.recall(config, splits_file, CLASSES, "train").groups
    test = saved_splits.recall(config, splits_file, CLASSES, "test")
    assert not saved_splits.of_trained_groups(runs, CLASSES, test)[0].any()
    keys = [known[0], "P1000", "", known[-1], test.groups[0]]
    other = test.take(np.zeros(5, int))
    other = dataclasses.replace(other, groups=tuple(keys))
    mask, unknown = saved_splits.of_trained_groups(runs, CLASSES, other)
    assert (mask.tolist(), unknown) == ([True, False, False, True, False], [])
    # An earlier version kept no groups: they are read from the training images.
    content = json.loads(splits_file.read_text())
    assert content.pop("groups").keys() == {"train", "validation", "test"}
    splits_file.write_text(json.dumps(content))
    assert saved_splits.of_trained_groups(runs, CLASSES, other)[0].tolist() == mask.tolist()
    file.rename(tmp_path / "moved.npz")
    mask, unknown = saved_splits.of_trained_groups(runs, CLASSES, other)
    assert (mask.any(), unknown) == (False, [splits_file.parent])


def test_images_without_groups_need_none_of_the_run(run):
    config, splits_file = run
    dataset = saved_splits.recall(config, splits_file, CLASSES, "test")
    splits_file.unlink()
    runs = {splits_file.parent: config}
    mask, unknown = saved_splits.of_trained_groups(runs, CLASSES, dataset)
    assert (mask.any(), unknown) == (False, [])
