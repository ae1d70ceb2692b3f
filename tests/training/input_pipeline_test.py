import json
import pathlib

import numpy as np
import pytest

from bloodjax import config as config_lib
from bloodjax.data import images, sources
from bloodjax.data.dataset import rarest_labels
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.io import remote
from bloodjax.training import input_pipeline, saved_splits, setup

from ..data.formats import medmnist_files

SIZE = 32
SPLITS = {"train": 32, "val": 16, "test": 16}


def challenge(path, dataset):
    np.savez(path, images=dataset.images, labels=dataset.labels, classes=np.array(dataset.classes))
    return str(path)


def cells(n, seed=0):
    return render.render_dataset(n, SIZE, seed=seed)


@pytest.fixture
def file(tmp_path):
    return challenge(tmp_path / "cells.npz", cells(160))


@pytest.fixture
def medmnist(tmp_path):
    """A file with splits; the first training image is in its test split too."""
    arrays = {}
    for seed, (split, n) in enumerate(SPLITS.items()):
        drawn = cells(n, seed)
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = drawn.images, drawn.labels[:, None]
    arrays["test_images"][3] = arrays["train_images"][0]
    np.savez(tmp_path / "bloodmnist.npz", **arrays)
    return str(tmp_path / "bloodmnist.npz")


@pytest.fixture
def split_folders(tmp_path):
    root = tmp_path / "folders"
    for seed, (split, n) in enumerate(SPLITS.items()):
        drawn = cells(n, seed)
        for i, image in enumerate(drawn.images):
            path = root / split / drawn.classes[drawn.labels[i]] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(images.encode_png(image))
    return str(root)


@pytest.fixture
def prepare(make_config, tmp_path):
    def run(train, workdir="run", resumes=False, **data):
        changes = {f"data.{key}": value for key, value in data.items()}
        config = make_config(**{"data.train": train} | changes)
        (tmp_path / workdir).mkdir(exist_ok=True)
        return input_pipeline.prepare_splits(config, tmp_path / workdir, resumes)

    return run


def lengths(prepared):
    return {name: len(dataset) for name, dataset in prepared.items()}


def test_auto_draws_fractions_of_a_source_without_splits(prepare, file):
    prepared = prepare(file)
    assert lengths(prepared) == {"train": 112, "validation": 24, "test": 24}
    names = [name for _, dataset in prepared.items() for name in dataset.names]
    assert sorted(names, key=int) == [str(i) for i in range(160)]
    for _, dataset in prepared.items():
        assert set(dataset.labels.tolist()) == set(range(8))
    source = np.load(file)
    for name, image in zip(prepared.test.names, prepared.test.images, strict=True):
        np.testing.assert_array_equal(image, source["images"][int(name)])


def test_fractions_and_none(prepare, file):
    assert lengths(prepare(file, validation="0.1", test="0.3")) == {
        "train": 96,
        "validation": 16,
        "test": 48,
    }
    none = prepare(file, "other", validation="0", test="0")
    assert none.validation is None
    assert none.test is None
    assert lengths(none) == {"train": 160}


def test_fractions_that_leave_nothing(prepare, file):
    with pytest.raises(UserError, match=r"config\.data\.validation and config\.data\.test leave"):
        prepare(file, validation="0.5", test="0.5")


def test_parts_of_their_own_spec(prepare, file, tmp_path):
    other = challenge(tmp_path / "other.npz", cells(24, seed=9))
    prepared = prepare(file, validation=other, test="0.2")
    assert lengths(prepared) == {"train": 128, "validation": 24, "test": 32}
    np.testing.assert_array_equal(prepared.validation.images, np.load(other)["images"])


def test_auto_takes_the_splits_of_a_medmnist_file(prepare, medmnist):
    prepared = prepare(medmnist)
    # The image that is in test as well has left train.
    assert lengths(prepared) == {"train": 31, "validation": 16, "test": 16}
    assert "train/0" not in prepared.train.names
    assert "test/3" in prepared.test.names


def test_auto_takes_the_splits_of_folders(prepare, split_folders):
    prepared = prepare(split_folders)
    assert lengths(prepared) == {"train": 32, "validation": 16, "test": 16}
    assert all(name.startswith("val/") for name in prepared.validation.names)


def test_a_fraction_is_of_the_source_s_own_train(prepare, split_folders):
    prepared = prepare(split_folders, validation="0.25")
    assert lengths(prepared) == {"train": 24, "validation": 8, "test": 16}
    assert all(name.startswith("train/") for name in prepared.validation.names)


@pytest.fixture
def flawed(tmp_path):
    dataset, planted = render.plant_flaws(cells(80), duplicates=4, junk=6)
    return challenge(tmp_path / "flawed.npz", dataset), planted


def test_junk_is_dropped_and_duplicates_stay_together(prepare, flawed, tmp_path):
    path, planted = flawed
    prepared = prepare(path)
    part_of = {n: part for part, dataset in prepared.items() for n in dataset.names}
    assert len(part_of) == 84
    assert not part_of.keys() & set(planted["junk"])
    assert all(part_of[a] == part_of[b] for a, b in planted["duplicates"])
    audit = json.loads((tmp_path / "run/audit/audit.json").read_text())
    assert sorted(audit["junk"]) == sorted(planted["junk"])
    assert (tmp_path / "run/audit/index.html").exists()


def test_report_leaves_everything_in(prepare, flawed, medmnist):
    assert sum(lengths(prepare(flawed[0], clean="report")).values()) == 90
    assert lengths(prepare(medmnist, "other", clean="report"))["train"] == 32


def test_fail_ends_with_what_was_found(prepare, flawed, medmnist, tmp_path):
    with pytest.raises(UserError, match="found 6 junk images, 0 label conflicts and 0 leaks"):
        prepare(flawed[0], clean="fail")
    with pytest.raises(UserError, match="1 leak;"):
        prepare(medmnist, clean="fail")
    assert (tmp_path / "run/audit/audit.json").exists()
    assert not (tmp_path / "run/splits.json").exists()


def test_leaks_between_sources_leave_train(prepare, file, tmp_path):
    other = cells(16, seed=9)
    other.images[5] = np.load(file)["images"][7]
    prepared = prepare(file, test=challenge(tmp_path / "other.npz", other), validation="0")
    assert lengths(prepared) == {"train": 159, "test": 16}
    assert "7" not in prepared.train.names


def test_a_resumed_run_has_the_same_parts(prepare, flawed):
    first = prepare(flawed[0])
    again = prepare(flawed[0], resumes=True)
    for (name, one), (other_name, other) in zip(first.items(), again.items(), strict=True):
        assert (name, one.names) == (other_name, other.names)
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_sources_in_buckets_are_copied_before_they_are_read(make_config, make_bucket, file):
    url = make_bucket("s3") / "data/cells.npz"
    config = make_config(**{"data.train": url, "data.test": file})
    with pytest.raises(UserError, match=f"^{url}: no such object"):
        input_pipeline.copy_sources(config)
    remote.upload(pathlib.Path(file), url)
    input_pipeline.copy_sources(config)
    remote.delete(url)
    assert len(sources.load(url, SIZE)) == 160


def test_splits_name_the_url_of_a_source_in_a_bucket(prepare, file, make_bucket, tmp_path):
    url = make_bucket("s3") / "data/cells.npz"
    remote.upload(pathlib.Path(file), url)
    first, local = prepare(f"{url}/", "run"), prepare(file, "local")
    assert first.train.names == local.train.names
    sources_of = [
        json.loads((tmp_path / run / "splits.json").read_text("utf-8"))["sources"]["train"]
        for run in ("run", "local")
    ]
    assert (sources_of[0]["spec"], sources_of[0]["path"]) == (f"{url}/", url)
    assert sources_of[0]["fingerprint"] == sources_of[1]["fingerprint"]
    again = prepare(f"{url}/", "run", resumes=True)
    np.testing.assert_array_equal(first.train.images, again.train.images)


def test_a_source_that_changed(prepare, file, tmp_path):
    prepare(file)
    challenge(tmp_path / "cells.npz", cells(80, seed=1))
    with pytest.raises(UserError, match=rf"{file}: has changed since .*splits\.json"):
        prepare(file, resumes=True)


def test_a_class_that_cleaning_leaves_empty(prepare, tmp_path):
    dataset = cells(81).take(np.arange(81) != 0)
    rare = dataset.labels == 0
    only = np.flatnonzero(rare)[0]
    kept = dataset.take(np.flatnonzero(~rare | (np.arange(80) == only)))
    other = cells(16, seed=9)
    other.images[0] = dataset.images[only]
    test = challenge(tmp_path / "other.npz", other)
    with pytest.raises(UserError, match=rf"1 of 1 train images of {dataset.classes[0]} \(also in"):
        prepare(challenge(tmp_path / "cells.npz", kept), test=test, validation="0")


def test_splits_without_train(prepare, tmp_path):
    for split in ("val", "test"):
        for name in ("a", "b"):
            path = tmp_path / f"folders/{split}/{name}/1.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(images.encode_png(cells(8).images[len(split)]))
    with pytest.raises(UserError, match="none is called train"):
        prepare(str(tmp_path / "folders"), clean="report")


def test_training_needs_a_source(prepare):
    with pytest.raises(UserError, match=r"config\.data\.train is empty"):
        prepare("")


@pytest.fixture
def select(make_config, prepare, tmp_path):
    """`parts.select` for a run on the given source."""

    def make(train, **data):
        prepare(train, **data)
        config = make_config(**{"data.train": train})
        saved = tmp_path / "run/splits.json"
        return lambda spec, split=None: saved_splits.select(
            config, saved, render.CLASSES, spec, split
        )

    return make


def test_select_takes_the_part_kept_back_for_testing(select, file, tmp_path):
    choose = select(file)
    saved = json.loads((tmp_path / "run/splits.json").read_text())["parts"]
    for split, part in [(None, "test"), ("validation", "validation"), ("train", "train")]:
        name, dataset = choose(file, split)
        assert name == part
        assert list(dataset.names) == saved[part]
    with pytest.raises(UserError, match=r"--split=val: .* train, validation, test"):
        choose(file, "val")


def test_select_without_a_test_part_takes_validation(select, file):
    assert select(file, test="0")(file)[0] == "validation"


def test_select_of_a_foreign_source(select, file, tmp_path):
    choose = select(file)
    other = challenge(tmp_path / "my other.npz", cells(24, seed=9))
    name, dataset = choose(other)
    assert (name, len(dataset)) == ("my-other", 24)
    with pytest.raises(UserError, match=r"--split=test: .*my other\.npz has no splits; expected"):
        choose(other, "test")


def test_select_of_a_foreign_source_with_splits(select, file, medmnist):
    choose = select(file)
    name, dataset = choose(medmnist)
    assert (name, len(dataset)) == ("bloodmnist-test", 16)
    name, dataset = choose(medmnist, "val")
    assert (name, len(dataset)) == ("bloodmnist-val", 16)
    with pytest.raises(UserError, match="has the splits test, train, val"):
        choose(medmnist, "validation")


def test_select_takes_the_classes_order_of_the_run(select, file, tmp_path):
    dataset = cells(16, seed=9)
    turned = np.array(dataset.classes[::-1])
    path = tmp_path / "turned.npz"
    np.savez(path, images=dataset.images, labels=7 - dataset.labels, classes=turned)
    np.testing.assert_array_equal(select(file)(str(path))[1].labels, dataset.labels)


def test_select_needs_known_classes(select, file, tmp_path):
    path = tmp_path / "strange.npz"
    np.savez(path, images=cells(8).images, labels=np.arange(8) % 2, classes=np.array(["a", "b"]))
    with pytest.raises(UserError, match=r"strange\.npz: contains the classes a, b,"):
        select(file)(str(path))


def test_a_saved_source_is_known_by_its_fingerprint(prepare, file, tmp_path):
    prepare(file)
    saved = json.loads((tmp_path / "run/splits.json").read_text())["sources"]
    print_ = sources.fingerprint(file)
    source = {"spec": file, "fingerprint": print_, "path": file}
    assert saved == dict.fromkeys(input_pipeline.SPLITS, source)


def test_recall_reads_a_part_from_where_it_came(prepare, make_config, file, medmnist, tmp_path):
    prepared = prepare(file, validation=medmnist)
    config, path = make_config(**{"data.train": file}), tmp_path / "run/splits.json"
    classes = prepared.train.classes
    for name, dataset in prepared.items():
        found = saved_splits.recall(config, path, classes, name)
        assert found.names == dataset.names
        np.testing.assert_array_equal(found.images, dataset.images)
        np.testing.assert_array_equal(found.labels, dataset.labels)
    with pytest.raises(UserError, match=r"splits\.json: the run has no holiday split"):
        saved_splits.recall(config, path, classes, "holiday")
    challenge(tmp_path / "cells.npz", cells(152, seed=5))
    with pytest.raises(UserError, match=r"cells\.npz: has changed since .*splits\.json"):
        saved_splits.recall(config, path, classes, "train")


@pytest.fixture
def numbered_folders(tmp_path):
    """Classes called 2 and 10, which are in another order as texts."""
    drawn = cells(64)
    for i, image in enumerate(drawn.images):
        path = tmp_path / f"numbered/{(2, 10)[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(image))
    return str(tmp_path / "numbered")


def test_a_resumed_run_keeps_the_order_of_its_classes(prepare, numbered_folders, tmp_path):
    first = prepare(numbered_folders)
    assert first.train.classes == ("2", "10")
    saved = tmp_path / "run/splits.json"
    content = json.loads(saved.read_text())
    assert content["classes"] == ["2", "10"]
    saved.write_text(json.dumps(content | {"classes": ["10", "2"]}))
    resumed = prepare(numbered_folders, resumes=True)
    assert resumed.train.classes == ("10", "2")
    assert resumed.train.labels.tolist() == (1 - first.train.labels).tolist()


def test_a_run_of_an_earlier_version_keeps_its_order(prepare, numbered_folders, tmp_path):
    prepare(numbered_folders)
    saved = tmp_path / "run/splits.json"
    content = json.loads(saved.read_text())
    del content["classes"]
    saved.write_text(json.dumps(content))
    assert prepare(numbered_folders, resumes=True).train.classes == ("10", "2")


def test_a_test_source_without_names_is_refused_if_its_order_is_unknown(prepare, tmp_path):
    drawn = cells(64)
    for i, image in enumerate(drawn.images):
        path = tmp_path / f"folders/{('ill', 'well')[i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(image))
    test = str(tmp_path / "test.npz")
    np.savez(test, images=cells(16, seed=1).images, labels=np.arange(16) % 2)
    with pytest.raises(UserError, match=r"test.npz: names no classes, and its labels 0..1 need"):
        prepare(str(tmp_path / "folders"), test=test)
    prepared = prepare(str(tmp_path / "folders"), test=test, classes=("well", "ill"))
    assert prepared.test.classes == prepared.train.classes == ("well", "ill")


def test_says_what_is_in_no_split(prepare, split_folders, tmp_path):
    (tmp_path / "folders/test").rename(tmp_path / "folders/TEST_SIMPLE")
    (tmp_path / "folders/val").rename(tmp_path / "folders/test")
    prepared = prepare(split_folders, clean="report")
    assert sum(entry.count for entry in prepared.left_out) == 16
    assert {entry.reason for entry in prepared.left_out} == {"of the unused split test_simple"}


def test_all_sources_of_a_run_have_the_widest_scale(prepare, tmp_path):
    drawn = cells(64)
    for name, factor in {"train": 4, "test": 16}.items():
        np.savez(
            tmp_path / f"{name}.npz",
            images=np.roll(drawn.images, factor, axis=1).astype(np.uint16) * factor,
            labels=drawn.labels,
        )
    prepared = prepare(str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz"), validation="0")
    assert {split.reading.tally.scale for _, split in prepared.items()} == {"12"}
    assert prepared.train.images.max() <= 63 < prepared.test.images.max()


def test_a_run_keeps_the_scale_of_its_images(make_config, tmp_path):
    drawn = cells(64)
    np.savez(tmp_path / "a.npz", images=drawn.images.astype(np.uint16) * 16, labels=drawn.labels)
    config = make_config(**{"data.train": str(tmp_path / "a.npz")})
    workdir = tmp_path / "run"
    workdir.mkdir()
    setup.prepare_run(config, None, workdir, fresh=True)
    stored = config_lib.load_json(workdir / "config.json")
    assert (stored.data.bits, stored.data.scale) == ("auto", "12")
    assert config_lib.differences(stored, config) == []
    dark = str(tmp_path / "dark.npz")
    np.savez(dark, images=drawn.images.astype(np.uint16))
    options = config_lib.read_options(stored)
    np.testing.assert_array_equal(
        sources.load_images(dark, SIZE, options=options).images, drawn.images // 16
    )


@pytest.fixture
def sorted_table(tmp_path):
    """A table sorted by class, of 160 cells of 40 patients, with a weight each."""
    dataset = cells(160)
    (tmp_path / "images").mkdir()
    rows = []
    for i in np.argsort(dataset.labels, kind="stable"):
        (tmp_path / "images" / f"{i:03d}.png").write_bytes(images.encode_png(dataset.images[i]))
        rows.append(f"{i:03d},{dataset.classes[dataset.labels[i]]},p{i % 40},{1 + i / 100}\n")
    path = tmp_path / "labels.csv"
    path.write_text("image_id,dx,patient_id,weight\n" + "".join(rows))
    return path


def test_a_sorted_table_puts_every_class_and_no_patient_twice_in_every_split(prepare, sorted_table):
    prepared = prepare(str(sorted_table))
    patients = []
    for name, dataset in prepared.items():
        assert set(dataset.labels.tolist()) == set(range(8)), name
        patients.append(set(dataset.groups))
        expected = [np.float32(1 + int(each[7:10]) / 100) for each in dataset.names]
        np.testing.assert_array_equal(dataset.weights, expected)
    assert not patients[0] & (patients[1] | patients[2])
    assert not patients[1] & patients[2]


def test_the_order_of_rows_does_not_matter_and_a_changed_label_is_refused(prepare, sorted_table):
    first = prepare(str(sorted_table))
    header, *rows = sorted_table.read_text().splitlines(keepends=True)
    sorted_table.write_text("".join([header, *rows[::-1]]))
    again = prepare(str(sorted_table), resumes=True)
    anew = prepare(str(sorted_table), "other")
    assert first.train.names == again.train.names == anew.train.names
    rows[0] = rows[0].replace("basophil", "platelet")
    sorted_table.write_text("".join([header, *rows]))
    with pytest.raises(UserError, match="has changed since"):
        prepare(str(sorted_table), resumes=True)


def test_a_run_that_numbered_the_classes_of_a_medmnist_file_resumes(prepare, tmp_path):
    path = str(medmnist_files.write(tmp_path / "octmnist.npz", "octmnist", counts=(40, 8, 8)))
    assert prepare(path, clean="report").train.classes[0] == "choroidal neovascularization"
    saved = tmp_path / "run/splits.json"
    numbered = [f"class_{i}" for i in range(4)]
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"classes": numbered}))
    resumed = prepare(path, resumes=True, clean="report")
    assert resumed.train.classes == tuple(numbered)
    assert resumed.train.labels[:4].tolist() == [0, 1, 2, 3]


def test_several_labels_are_in_every_drawn_split(prepare, tmp_path):
    known = medmnist_files.write(tmp_path / "chestmnist.npz", "chestmnist", counts=(140, 1, 1))
    with np.load(known) as stored:
        arrays = {"images": stored["train_images"], "labels": stored["train_labels"]}
    np.savez(tmp_path / "mine.npz", **arrays)
    prepared = prepare(str(tmp_path / "mine.npz"), clean="report", task="multi-label")
    # The strata are those of all images: the rarest label differs from split to split.
    strata = rarest_labels(np.concatenate([dataset.labels for _, dataset in prepared.items()]))
    assert len(strata) == 140
    shares, start = {"train": 0.7, "validation": 0.15, "test": 0.15}, 0
    for split, dataset in prepared.items():
        assert dataset.is_multi_label
        assert (dataset.class_counts > 0).all()
        own, start = strata[start : start + len(dataset)], start + len(dataset)
        for stratum in np.unique(strata):
            quota = shares[split] * np.sum(strata == stratum)
            # Less than 1, or more where a label of three images is put into each split.
            assert abs(np.sum(own == stratum) - quota) < 1.2, (split, stratum)
    counts = [dataset.class_counts / len(dataset) for _, dataset in prepared.items()]
    assert np.abs(counts[0] - counts[1]).mean() < 0.1
    resumed = prepare(str(tmp_path / "mine.npz"), resumes=True, task="multi-label")
    np.testing.assert_array_equal(resumed.test.labels, prepared.test.labels)


def test_labels_from_1_are_read_so_where_the_last_class_is_missing(make_config, tmp_path):
    names = {}
    for name, classes in {"train": 8, "validation": 7, "other": 6}.items():
        drawn = cells(160, seed=classes)
        drawn = drawn.take(np.flatnonzero(drawn.labels < classes))
        names[name] = str(tmp_path / f"{name}.npz")
        np.savez(names[name], images=drawn.images, labels=drawn.labels + 1)
    config = make_config(
        **{"data.train": names["train"], "data.validation": names["validation"], "data.test": "0"}
    )
    workdir = tmp_path / "run"
    workdir.mkdir()
    found = setup.prepare_run(config, None, workdir, fresh=True).splits.validation
    assert sorted(set(found.labels.tolist())) == list(range(7))
    stored = config_lib.load_json(workdir / "config.json")
    assert stored.data.first_label == "1"
    assert config_lib.differences(stored, config) == []
    splits_file = workdir / saved_splits.SPLITS_FILE
    _, other = saved_splits.select(stored, splits_file, found.classes, names["other"], None)
    assert sorted(set(other.labels.tolist())) == list(range(6))
    np.savez(tmp_path / "zero.npz", images=drawn.images, labels=drawn.labels)  # from 0 on
    with pytest.raises(UserError, match=r"is 0, expected 1..8 .*, from 1 on as in training"):
        saved_splits.select(stored, splits_file, found.classes, str(tmp_path / "zero.npz"), None)
