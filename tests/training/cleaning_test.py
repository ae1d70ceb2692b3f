"""What cleaning takes, what it must not take, and splits that come out empty."""

import dataclasses

import numpy as np
import pytest

from bloodjax.data import images, splits
from bloodjax.data.reading import LeftOut
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.training import input_pipeline

SIZE = 32


def challenge(path, dataset, groups=None):
    arrays = {} if groups is None else {"groups": np.array(groups)}
    np.savez(
        path,
        images=dataset.images,
        labels=dataset.labels,
        classes=np.array(dataset.classes),
        **arrays,
    )
    return str(path)


def splits_file(path, parts):
    """An npz with the splits train, val and test, as MedMNIST has it."""
    arrays = {}
    for name, dataset in parts.items():
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = dataset.images, dataset.labels
    np.savez(path, **arrays)
    return str(path)


def cells(n, seed=0):
    return render.render_dataset(n, SIZE, seed=seed)


def two_classes(n, seed=0):
    """Cells of the first two kinds."""
    drawn = cells(4 * n, seed)
    kept = drawn.take(drawn.labels < 2).take(np.arange(n))
    return dataclasses.replace(kept, classes=kept.classes[:2])


@pytest.fixture
def prepare(make_config, tmp_path):
    def run(train, workdir="run", folds=0, **data):
        changes = {f"data.{key}": value for key, value in data.items()}
        config = make_config(**{"data.train": train, "folds": folds} | changes)
        (tmp_path / workdir).mkdir(exist_ok=True)
        return input_pipeline.prepare_splits(config, tmp_path / workdir, resumes=False)

    return run


def noise(n, size=SIZE):
    """Frames of different kinds, none of them a cell."""
    rng = np.random.default_rng(0)
    steps = np.linspace(0, 255, size)
    kinds = [
        rng.integers(0, 256, (size, size, 3)),
        np.stack([np.tile(steps, (size, 1))] * 3, axis=-1),
        np.where(rng.random((size, size, 1)) < 0.2, 0, 255).repeat(3, axis=2),
    ]
    return np.stack(kinds[:n]).astype(np.uint8)


def test_cleaning_that_costs_a_class_more_than_a_tenth_is_an_error(prepare, tmp_path):
    drawn = cells(160)
    first = np.flatnonzero(drawn.labels == 3)[:3]
    drawn.images[first] = noise(3)
    file = challenge(tmp_path / "cells.npz", drawn)
    message = (
        rf"clean=drop would leave out 3 of 20 images of {drawn.classes[3]} \(junk\): look at "
        r".*audit/index.html, then correct the data, or keep .* config.data.clean=report$"
    )
    with pytest.raises(UserError, match=message):
        prepare(file)
    assert (tmp_path / "run/audit/index.html").exists()
    assert not (tmp_path / "run/splits.json").exists()
    assert sum(len(dataset) for _, dataset in prepare(file, clean="report").items()) == 160


def test_junk_of_a_source_whose_one_split_has_a_name(prepare, tmp_path):
    drawn = cells(160)
    rare = np.flatnonzero(drawn.labels == 3)
    drawn.images[rare[0]] = noise(1)[0]
    prepared = prepare(splits_file(tmp_path / "few.npz", {"train": drawn}))
    assert [(entry.reason, entry.count) for entry in prepared.left_out] == [("junk", 1)]
    drawn.images[rare[:3]] = noise(3)
    with pytest.raises(UserError, match=r"would leave out 3 of 20 images of .* \(junk\)"):
        prepare(splits_file(tmp_path / "many.npz", {"train": drawn}), "other")


def test_what_is_dropped_is_known_by_class(prepare, tmp_path):
    drawn = cells(160)
    drawn.images[np.flatnonzero(drawn.labels == 3)[0]] = noise(1)[0]
    other = cells(24, seed=9)
    other.images[5] = drawn.images[np.flatnonzero(drawn.labels == 1)[0]]
    prepared = prepare(
        challenge(tmp_path / "cells.npz", drawn),
        test=challenge(tmp_path / "test.npz", other),
        validation="0",
    )
    names = drawn.classes
    assert prepared.left_out == (
        LeftOut("also in a later split", names[1], 1),
        LeftOut("junk", names[3], 1),
    )


def test_copies_of_a_junk_frame_count_as_one_image(prepare, tmp_path):
    flawed, _ = render.plant_flaws(cells(80), junk=40)
    prepared = prepare(challenge(tmp_path / "cells.npz", flawed))
    assert sum(entry.count for entry in prepared.left_out) == 40
    assert sum(len(dataset) for _, dataset in prepared.items()) == 80


@pytest.mark.parametrize("shared", [1, 8])
def test_a_patient_on_two_sides_leaves_the_earlier_one(prepare, tmp_path, shared):
    train, test = two_classes(64), two_classes(16, seed=5)
    groups = [f"p{i // 2}" for i in range(64)]
    files = (
        challenge(tmp_path / "train.npz", train, groups),
        challenge(tmp_path / "test.npz", test, [f"p{i % shared}" for i in range(16)]),
    )
    if shared == 8:
        with pytest.raises(UserError, match=r"7 of 40 images of .* \(of a group in a"):
            prepare(files[0], test=files[1], validation="0")
    else:
        prepared = prepare(files[0], test=files[1], validation="0")
        assert len(prepared.train) == 62
        assert {entry.reason for entry in prepared.left_out} == {"of a group in a later split"}
    kept = prepare(files[0], "other", test=files[1], validation="0", clean="report")
    assert len(kept.train) == 64
    with pytest.raises(UserError, match=rf"{shared} leaks?; config.data.clean is fail"):
        prepare(files[0], "third", test=files[1], validation="0", clean="fail")


def test_what_is_found_and_kept_is_said(prepare, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(input_pipeline.console, "log_info", said.append)
    flawed, _ = render.plant_flaws(cells(80), conflicts=2, junk=6)
    file = challenge(tmp_path / "cells.npz", flawed)
    prepare(file)
    prepare(file, "other", clean="report")
    page = tmp_path / "run/audit/index.html"
    assert said[0] == f"the audit found 2 label conflicts, kept as they are: see {page}"
    assert said[1].startswith("the audit found 2 label conflicts, 6 junk images, kept")


def test_validation_and_test_that_are_one_file(prepare, tmp_path):
    train = challenge(tmp_path / "train.npz", two_classes(32))
    other = challenge(tmp_path / "other.npz", two_classes(16, seed=5))
    with pytest.raises(UserError, match=r"leave out 8 of 8 validation images of basophil"):
        prepare(train, validation=other, test=other)


@pytest.mark.parametrize(
    ("groups", "sources", "message"),
    [
        (1, {}, r"the validation split is empty: the 40 images of .* form 1 group \(of a patient"),
        (2, {}, r"the test split is empty: .* form 2 groups .* or config.data.test=0 for none$"),
        (1, {"test": "0"}, r"the validation split is empty: .* or config.data.validation=0"),
        (1, {"validation": "0", "test": "0"}, None),
        (2, {"test": "0"}, None),
        (3, {}, None),
    ],
)
def test_a_split_that_comes_out_empty_is_known_at_once(prepare, tmp_path, groups, sources, message):
    train = two_classes(40)
    file = challenge(tmp_path / "cells.npz", train, [f"p{i // 2 % groups}" for i in range(40)])
    if message is None:
        assert all(len(dataset) for _, dataset in prepare(file, **sources).items())
    else:
        with pytest.raises(UserError, match=message):
            prepare(file, **sources)
        assert not (tmp_path / "run/splits.json").exists()


def test_folds_need_no_validation_split(prepare, tmp_path):
    file = challenge(tmp_path / "cells.npz", two_classes(40), ["p0", "p0", "p1", "p1"] * 10)
    assert len(prepare(file, folds=2, test="0").train) >= 20


def test_a_class_whose_only_patient_does_not_train(prepare, tmp_path):
    drawn = two_classes(40)
    groups = [f"p{label}" for label in drawn.labels]
    with pytest.raises(UserError, match=r"split is empty|is left to train on: all of them are in"):
        prepare(challenge(tmp_path / "cells.npz", drawn, groups))


def test_one_class_only(prepare, tmp_path):
    drawn = cells(80)
    one = drawn.take(drawn.labels == 0)
    np.savez(tmp_path / "one.npz", images=one.images, labels=one.labels, classes=["blast"])
    with pytest.raises(UserError, match=r"one.npz: all images are of one class \(blast\), expec"):
        prepare(str(tmp_path / "one.npz"))


def test_a_class_with_fewer_images_than_splits_is_said(prepare, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(input_pipeline.console, "log_info", said.append)
    drawn = two_classes(60)
    kept = drawn.take(np.concatenate([np.flatnonzero(drawn.labels == 0), [1]]))
    prepared = prepare(challenge(tmp_path / "cells.npz", kept))
    assert prepared.train.labels.tolist().count(1) == 1
    name, rare = kept.classes[:2]
    assert said == [
        f"the {split} split has images of one class only, {name}: its metrics do not show whether "
        "classes are told apart"
        for split in ("validation", "test")
    ]
    assert rare not in said[0]


@pytest.fixture
def own(tmp_path):
    """A file with splits of its own."""
    parts = {"train": two_classes(24, 3), "val": two_classes(8, 4), "test": two_classes(16, 5)}
    return splits_file(tmp_path / "own.npz", parts)


def test_a_source_for_test_gives_its_own_test_split(prepare, tmp_path, own):
    drawn = challenge(tmp_path / "cells.npz", two_classes(32))
    prepared = prepare(drawn, test=own, validation=own, classes=("basophil", "eosinophil"))
    assert {name: len(dataset) for name, dataset in prepared.items()} == {
        "train": 32,
        "validation": 8,
        "test": 16,
    }
    assert "its own test split: 16 of 48 images" in prepared.test.reading.details
    assert {entry.reason for entry in prepared.left_out} == {"of the unused split train"}
    assert sum(entry.count for entry in prepared.left_out) == 24


PARTS = ("train", "val", "test")


def shared_patients(tmp_path, how):
    """A source of every kind in which one patient, P0, is meant to be on two sides."""
    drawn = {
        part: two_classes(24 if part == "train" else 8, seed) for seed, part in enumerate(PARTS)
    }
    keys = {part: [f"{part}{i // 2}" for i in range(len(each))] for part, each in drawn.items()}
    keys["train"][:2] = keys["test"][:2] = ["P0", "P0"]
    if how == "fractions":
        every = [key for part in keys.values() for key in part]
        joined = drawn["train"].concatenate(drawn["val"]).concatenate(drawn["test"])
        return {"train": challenge(tmp_path / "all.npz", joined, every)}
    if how == "specs":
        files = [challenge(tmp_path / f"{part}.npz", drawn[part], keys[part]) for part in PARTS]
        return dict(zip(("train", "validation", "test"), files, strict=True))
    if how == "npz splits":
        path = tmp_path / "splits.npz"
        arrays = {f"{part}_groups": np.array(keys[part]) for part in PARTS}
        for part, each in drawn.items():
            arrays |= {f"{part}_images": each.images, f"{part}_labels": each.labels}
        np.savez(path, classes=np.array(drawn["train"].classes), **arrays)
        return {"train": str(path)}
    root, rows = tmp_path / "cells", ["path,label,split,group"]
    for part, each in drawn.items():
        for i, image in enumerate(each.images):
            name = f"{part}_{i}.png"
            root.mkdir(exist_ok=True)
            (root / name).write_bytes(images.encode_png(image))
            rows.append(f"{name},{each.classes[each.labels[i]]},{part},{keys[part][i]}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return {"train": str(root / "labels.csv")}


@pytest.mark.parametrize("how", ["fractions", "specs", "npz splits", "table"])
def test_no_group_is_on_two_sides_whoever_made_the_splits(prepare, tmp_path, monkeypatch, how):
    said = []
    monkeypatch.setattr(input_pipeline.console, "log_info", said.append)
    sources = shared_patients(tmp_path, how)
    dropped = dict(prepare(**sources).items())
    assert splits.spanning_groups(dropped) == {}
    assert not [line for line in said if "in several splits" in line]
    if how == "fractions":  # which are drawn so that groups stay whole
        return
    assert "P0" in dropped["test"].groups
    kept = dict(prepare(**sources, workdir="other", clean="report").items())
    assert splits.spanning_groups(kept) == {"P0": ("train", "test")}
    (line,) = [line for line in said if "in several splits" in line]
    assert line.startswith("1 group has images in several splits (P0 in train and test), so")
