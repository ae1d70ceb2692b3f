"""Tests of bloodjax/data/audit/findings.py."""

import dataclasses
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from bloodjax.data import fingerprint, images, sources
from bloodjax.data.audit import audit, findings, outliers
from bloodjax.data.dataset import Dataset
from bloodjax.data.synthetic import render


@pytest.fixture(scope="module")
def cells():
    return render.render_dataset(240, seed=3)


def with_frames(dataset, frames, labels):
    """`dataset` with `frames` at the end, named junk/0, junk/1, ..."""
    k = len(frames)
    return dataclasses.replace(
        dataset,
        images=np.concatenate([dataset.images, frames]),
        labels=np.concatenate([dataset.labels, labels]).astype(np.int32),
        names=(*dataset.names, *(f"junk/{i}" for i in range(k))),
        splits=(*dataset.splits, *[""] * k),
        groups=(*dataset.groups, *[""] * k),
    )


def jpeg(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def names(group):
    return [image.name for image in group]


def test_clean_cells_have_no_findings(cells):
    found = audit({"train": cells})
    assert found.n == 240
    for field in ("junk", "exact_duplicates", "near_duplicates", "label_conflicts", "leakage"):
        assert getattr(found, field) == (), field


def test_planted_flaws_are_found_and_nothing_else(cells):
    flawed, planted = render.plant_flaws(cells, duplicates=6, conflicts=3, junk=40, seed=1)
    found = audit({"train": flawed})

    def as_sets(groups):
        return {frozenset(group) for group in groups}

    assert set(names(found.junk)) == set(planted["junk"])
    assert as_sets(map(names, found.exact_duplicates)) == as_sets(
        planted["duplicates"] + planted["conflicts"]
    )
    assert as_sets(map(names, found.label_conflicts)) == as_sets(planted["conflicts"])
    assert found.near_duplicates == found.leakage == ()
    assert found.junk_in("train") == [int(name) for name in names(found.junk)]
    assert found.junk_reasons[0].startswith("repeated 40 times")


def test_repeated_frames_are_junk_when_saved_again_or_noisy(cells):
    frame = render.cartoon(96)
    rng = np.random.default_rng(0)
    frames = [jpeg(frame, quality) for quality in range(30, 90, 3)]
    frames += [np.clip(frame + rng.normal(0, 5, frame.shape), 0, 255).astype(np.uint8)] * 2
    found = audit({"train": with_frames(cells, frames, np.arange(22) % 8)})
    assert names(found.junk) == [f"junk/{i}" for i in range(22)]
    assert found.exact_duplicates == found.near_duplicates == found.label_conflicts == ()


def test_a_repeated_cell_is_a_duplicate_and_no_junk(cells):
    found = audit({"train": with_frames(cells, [cells.images[5]] * 30, [cells.labels[5]] * 30)})
    assert found.junk == ()
    assert [len(group) for group in found.exact_duplicates] == [31]


def test_a_less_odd_frame_is_junk_only_when_repeated(cells):
    blend = 0.45 * render.cartoon(96) + 0.55 * cells.images[:1]
    frame = blend.astype(np.uint8)
    assert audit({"train": with_frames(cells, frame, [0])}).junk == ()
    repeated = audit({"train": with_frames(cells, frame.repeat(9, axis=0), [0] * 9)})
    assert names(repeated.junk) == [f"junk/{i}" for i in range(9)]


def test_leakage_between_data_sets_and_between_splits(cells):
    changed = jpeg(cells.images[0], 80)
    one = dataclasses.replace(cells.take(np.arange(8)), splits=("train",) * 5 + ("test",) * 3)
    one = dataclasses.replace(one, images=np.concatenate([one.images[:7], one.images[1:2]]))
    other = dataclasses.replace(
        cells.take(np.arange(8, 10)), images=np.stack([changed, cells.images[9]])
    )
    within = audit({"one": one})
    assert [names(group) for group in within.leakage] == [["1", "7"]]

    both = audit({"one": one, "other": other})
    assert [names(group) for group in both.near_duplicates] == [["one:0", "other:8"]]
    assert [names(group) for group in both.leakage] == [["one:0", "other:8"], ["one:1", "one:7"]]
    assert both.duplicates_in("one") == [[1, 7]]
    assert both.duplicates_in("other") == []


def test_labels_compare_by_class_name_across_data_sets(cells):
    one = cells.take(np.arange(4))
    renumbered = dataclasses.replace(
        one, labels=(7 - one.labels).astype(np.int32), classes=one.classes[::-1]
    )
    assert audit({"a": one, "b": renumbered}).label_conflicts == ()
    conflicting = dataclasses.replace(one, classes=one.classes[::-1])
    found = audit({"a": one, "b": conflicting})
    assert len(found.label_conflicts) == 4
    assert found.to_json()["label_conflicts"][0] == {
        "names": ["a:0", "b:0"],
        "labels": [one.classes[one.labels[0]], one.classes[7 - one.labels[0]]],
    }


def fluorescence(n, size=96):
    """Bright spots on black in all colours: unlike stained cells, and unlike one another."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    frames = []
    for _ in range(n):
        spots = np.zeros_like(x)
        for _ in range(rng.integers(1, 5)):
            cx, cy, r = *rng.uniform(0.35, 0.65, 2), rng.uniform(0.05, 0.15)
            spots = np.maximum(spots, np.exp(-((((x - cx) ** 2 + (y - cy) ** 2) / r**2) ** 2)))
        colour = rng.uniform(80, 250) * rng.uniform(0.2, 1, 3)
        noise = rng.normal(rng.uniform(0, 20), rng.uniform(1, 6), (size, size, 3))
        frames.append(np.clip(spots[..., None] * colour + noise, 0, 255))
    return np.stack(frames).astype(np.uint8)


@pytest.fixture(scope="module")
def with_rare_class(cells):
    """240 cells, and a ninth class of ten images that are unlike them."""
    rare = with_frames(cells, fluorescence(10), [8] * 10)
    return dataclasses.replace(rare, classes=(*cells.classes, "rare"))


def test_a_rare_class_unlike_the_others_is_no_junk(with_rare_class):
    thumbnails = images.resize(with_rare_class.images, 48)
    assert np.sum(outliers.outlier_scores(thumbnails)[240:] > 1.65) >= 1, "one looks like junk"
    assert audit({"train": with_rare_class}).junk == ()


def test_an_image_unlike_its_rare_class_is_junk(with_rare_class):
    pixels = with_rare_class.images.copy()
    pixels[244] = np.random.default_rng(0).integers(0, 256, pixels[0].shape)
    found = audit({"train": dataclasses.replace(with_rare_class, images=pixels)})
    assert names(found.junk) == ["junk/4"]


def test_an_oversampled_rare_class_is_no_junk(with_rare_class):
    index = np.concatenate([np.arange(240), np.repeat(np.arange(240, 250), 20)])
    copies = dataclasses.replace(
        with_rare_class.take(index), names=tuple(str(i) for i in range(len(index)))
    )
    found = audit({"train": copies})
    assert found.junk == ()
    assert [len(group) for group in found.exact_duplicates] == [20] * 10


def test_groups_leak_between_splits_and_data_sets(cells):
    one = dataclasses.replace(
        cells.take(np.arange(6)),
        splits=("train",) * 4 + ("test",) * 2,
        groups=("p1", "p2", "", "p3", "p1", ""),
    )
    other = dataclasses.replace(cells.take(np.arange(8, 11)), groups=("p2", "p4", ""))
    within = audit({"one": one})
    assert within.leakage == ()
    assert [names(group) for group in within.group_leakage] == [["0", "4"]]
    both = audit({"one": one, "other": other})
    assert [names(group) for group in both.leaks] == [["one:0", "one:4"], ["one:1", "other:8"]]
    assert both.to_json()["leaked_groups"] == ["p1", "p2"]
    assert both.to_json()["leakage"] == [["one:0", "one:4"], ["one:1", "other:8"]]


def test_keys_of_groups_that_differ_in_form_only_are_said(cells):
    eight = cells.take(np.arange(8))
    groups = ("P1", "p 1", "p2", "Jos\u00e9", "Jose\u0301", "p3", "p3", "")
    (remark,) = audit({"train": dataclasses.replace(eight, groups=groups)}).remarks
    assert remark.startswith("groups whose keys differ only in blanks, case or accents")
    assert remark.endswith("'Jose\u0301', 'Jos\u00e9'; 'P1', 'p 1'")
    assert audit({"train": eight}).remarks == ()


def test_hashes_are_those_of_each_data_set(cells):
    one, other = cells.take(np.arange(5)), cells.take(np.arange(3, 9))
    hashes = audit({"one": one, "other": other}).hashes
    np.testing.assert_array_equal(hashes["one"][3:], hashes["other"][:2])
    np.testing.assert_array_equal(hashes["other"], fingerprint.of_images(other.images))


def test_of_many_images_near_duplicates_are_left_out_and_that_is_said(cells, monkeypatch):
    flawed, _ = render.plant_flaws(cells, junk=6, duplicates=3, conflicts=2)
    few = audit({"train": flawed})
    assert few.left_out == ()
    monkeypatch.setattr(outliers, "MAX_PAIRWISE", 200)
    monkeypatch.setattr(outliers, "_SAMPLED", 150)
    many = audit({"train": flawed})
    assert many.left_out[0].startswith(f"near duplicates: {len(flawed)} images are more than the")
    assert many.to_json()["left_out"] == list(many.left_out)
    assert many.near_duplicates == ()
    assert (many.junk, many.exact_duplicates) == (few.junk, few.exact_duplicates)
    exact = set(few.exact_duplicates)
    assert set(many.label_conflicts) == exact & set(few.label_conflicts)


def test_to_json_names_everything(cells):
    flawed, planted = render.plant_flaws(cells, duplicates=2, junk=30, seed=1)
    written = json.loads(json.dumps(audit({"train": flawed}).to_json()))
    assert list(written) == [
        *("n", "junk", "junk_reasons", "exact_duplicates", "near_duplicates"),
        *("label_conflicts", "leakage", "leaked_groups", "remarks", "left_out"),
    ]
    assert written["n"] == 272
    assert set(written["junk"]) == set(written["junk_reasons"]) == set(planted["junk"])
    assert {tuple(sorted(group)) for group in written["exact_duplicates"]} == {
        tuple(sorted(pair)) for pair in planted["duplicates"]
    }


def test_no_images_no_findings(cells):
    assert audit({"train": cells.take(np.arange(0))}).n == 0


def test_more_than_chance_depends_on_how_common_copies_are():
    def flagged(copies):
        return findings._more_than_chance(np.array(copies), []).tolist()

    assert flagged([1] * 1000 + [2, 2, 2, 8])[-4:] == [False, False, False, True]
    assert not any(flagged([1] * 10 + [8] * 500)), "an oversampled set repeats everything"


@pytest.mark.parametrize("seed", [0, 1])
def test_finds_exactly_the_junk_of_a_shuffled_challenge_file(cells_dir, tmp_path, seed):
    path = tmp_path / "training_set.npz"
    command = [sys.executable, cells_dir / "an2dl.py", path, "--limit", "500"]
    subprocess.run(command, check=True)
    with np.load(path) as arrays:
        order = np.random.default_rng(seed).permutation(len(arrays["images"]))
        images, labels = arrays["images"][order], arrays["labels"][order]
    np.savez(path, images=images, labels=labels)
    dataset = sources.load(str(path), 96)

    found = audit({"train": dataset})
    assert found.junk_in("train") == np.flatnonzero(order >= 500).tolist()
    assert found.exact_duplicates == found.near_duplicates == found.label_conflicts == ()


def test_finds_the_duplicates_among_the_real_cells(cells_dir):
    """All cells of validation and the training part's cells that are known to have a copy."""
    known = {
        "train/basophil/BA_435917.jpg": "val/basophil/BA_858229.jpg",
        "train/eosinophil/EO_225902.jpg": "val/neutrophil/BNE_191112.jpg",
        "train/eosinophil/EO_65638.jpg": "val/eosinophil/EO_873756.jpg",
        "train/eosinophil/EO_918881.jpg": "val/eosinophil/EO_890163.jpg",
    }
    shifted = ["train/ig/IG_466905.jpg", "train/ig/IG_855229.jpg"]
    validation = read(cells_dir / "pbc96_val.zip", lambda name: True)
    training = read(cells_dir / "pbc96_train.zip", {*known, *shifted}.__contains__)

    found = audit({"train": training, "val": validation})
    assert found.junk == ()
    pairs = [["train:" + one, "val:" + other] for one, other in known.items()]
    assert [names(group) for group in found.exact_duplicates] == pairs
    assert [names(group) for group in found.leakage] == pairs
    assert [names(group) for group in found.label_conflicts] == [pairs[1]]
    assert [names(group) for group in found.near_duplicates] == [["train:" + n for n in shifted]]


def read(path, wanted):
    with zipfile.ZipFile(path) as archive:
        chosen = sorted(n for n in archive.namelist() if n.endswith(".jpg") and wanted(n))
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in chosen]
    labels = [render.CLASSES.index(name.split("/")[1]) for name in chosen]
    n = len(chosen)
    return Dataset(
        images=np.stack(pixels),
        labels=np.array(labels, np.int32),
        names=tuple(chosen),
        classes=render.CLASSES,
        splits=("",) * n,
        groups=("",) * n,
    )
