import dataclasses
import logging
import os
import unicodedata
import zipfile

import numpy as np
import pytest

from bloodjax.data import images, lazy, own_size, packing, sources
from bloodjax.data.formats import npz
from bloodjax.data.options import ReadOptions
from bloodjax.data.spec import DEFAULT_SYNTHETIC
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.io import buckets, message_urls, remote


def image(seed, side=24):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two images each of b, c and a."""
    for seed, name in enumerate(["b/1", "b/2", "c/1", "c/2", "a/1", "a/2"]):
        file = tmp_path / f"cells/{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(images.encode_png(image(seed)))
    return tmp_path / "cells"


@pytest.fixture
def zipped(folder):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as file:
        for image_file in sorted(folder.rglob("*.png"), reverse=True):
            file.write(image_file, image_file.relative_to(folder))
    return path


@pytest.fixture
def challenge(tmp_path):
    path = tmp_path / "training_set.npz"
    np.savez(path, images=np.stack([image(i) for i in range(8)]), labels=np.arange(8)[:, None])
    return path


def assert_same(one, other):
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert (one.names, one.classes, one.splits) == (other.names, other.classes, other.splits)


def test_a_folder_and_its_zip_are_the_same(folder, zipped):
    dataset = sources.load(str(folder), 16)
    assert dataset.images.shape == (6, 16, 16, 3)
    assert dataset.labels.dtype == np.int32
    assert_same(dataset, sources.load(str(zipped), 16))


def test_home_is_known(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(sources.load("~/cells", 24)) == 6


def test_a_path_may_have_another_unicode_form(folder):
    path = folder.rename(folder.with_name(unicodedata.normalize("NFD", "zélules")))
    typed = str(path.with_name("zélules"))
    assert not os.path.exists(typed)
    assert len(sources.load(typed, 24)) == 6
    assert sources.fingerprint(typed) == sources.fingerprint(str(path))


def test_a_path_in_another_case_is_named(folder):
    with pytest.raises(UserError, match=r"CELLS: no such file or folder; there is .*cells$"):
        sources.load(str(folder.with_name("CELLS")), 24)


@pytest.mark.parametrize("part", ["train", "val"])
def test_reads_real_cells(cells_dir, part):
    counts = {
        "train": [852, 2181, 1085, 2026, 849, 993, 2330, 1643],
        "val": [122, 312, 155, 290, 122, 143, 333, 235],
    }
    path = cells_dir / f"pbc96_{part}.zip"
    dataset = sources.load(str(path), 96)
    assert dataset.classes == npz.BLOOD_CELLS
    assert np.bincount(dataset.labels).tolist() == counts[part]
    assert set(dataset.splits) == {part}
    with zipfile.ZipFile(path) as zipped:
        assert dataset.names == tuple(sorted(zipped.namelist()))
        i = len(dataset) // 2
        expected = images.decode(zipped.read(dataset.names[i]), 96)
    np.testing.assert_array_equal(dataset.images[i], expected)


def test_reads_a_challenge_file(challenge):
    dataset = sources.load(str(challenge), 24)
    assert dataset.classes == npz.BLOOD_CELLS
    np.testing.assert_array_equal(dataset.images[3], image(3))


def test_renders_synthetic_cells():
    assert_same(sources.load("synthetic:16", 32, seed=5), render.render_dataset(16, 32, seed=5))


def test_more_synthetic_cells_than_fit_in_memory_are_refused():
    with pytest.raises(UserError, match=r"synthetic:999999999: needs .* GiB of memory, expected"):
        sources.load("synthetic:999999999", 96)


def test_a_few_rendered_cells_are_not_enough():
    with pytest.raises(UserError, match=r"^synthetic:6: expected 8 images or more, one of each"):
        sources.load("synthetic:6", 32)


def test_class_names_give_the_label_order(folder):
    names = ("c", "not here", "b", "a")
    dataset = sources.load(str(folder), 24, class_names=names)
    assert dataset.classes == names
    assert [dataset.classes[label] for label in dataset.labels] == ["a", "a", "b", "b", "c", "c"]


def test_class_names_may_differ_in_form(folder):
    dataset = sources.load(str(folder), 24, class_names=("C", " b", "a"))
    assert dataset.classes == ("C", " b", "a")
    assert dataset.labels.tolist() == [2, 2, 1, 1, 0, 0]
    assert dataset.reading.details == ("b taken as  b", "c taken as C")


def test_sources_that_are_compared_have_common_names(folder):
    first = sources.load(str(folder), 24)
    other = dataclasses.replace(first, classes=("B", "a ", "d"))
    found = sources.with_common_names({"first": first, "other": other})
    assert found["first"].classes == first.classes
    assert found["other"].classes == ("b", "a", "d")
    assert found["other"].reading.details == ("B taken as b", "a  taken as a")


def test_a_label_that_a_file_of_several_lacks_is_named(tmp_path):
    labels = np.array([[0, 1], [1, 0], [1, 1]])
    file = str(tmp_path / "several.npz")
    np.savez(file, images=np.stack([image(i) for i in range(3)]), labels=labels, classes=["a", "c"])
    several = ReadOptions(task="multi-label")
    with pytest.raises(UserError, match=r"several.npz: has no column of the labels b, d, expected"):
        sources.load(file, 24, options=several, class_names=("a", "b", "c", "d"))
    found = sources.load(file, 24, options=several, class_names=("c", "a"))
    assert found.labels.tolist() == labels[:, ::-1].tolist()


def test_two_columns_of_one_form_are_one_label(tmp_path):
    file, several = str(tmp_path / "several.npz"), ReadOptions(task="multi-label")
    pixels = np.stack([image(i) for i in range(3)])
    np.savez(file, images=pixels, labels=[[1, 0], [0, 1], [0, 0]], classes=["a", "A"])
    found = sources.load(file, 24, options=several, class_names=("a",))
    assert found.labels.tolist() == [[1], [1], [0]]
    with pytest.raises(UserError, match=r"several.npz: has no column of the label b, expected"):
        sources.load(file, 24, options=several, class_names=("a", "b"))


def test_says_which_classes_are_unknown(folder):
    with pytest.raises(UserError, match=r"cells: contains the classes b, c, expected only a, d$"):
        sources.load(str(folder), 24, class_names=("a", "d"))


@pytest.fixture
def numbered(tmp_path):
    """The same images in folders called by their labels, and as an npz with these labels."""
    labels = np.array([0, 1, 2, 9, 10, 11])
    pixels = np.stack([image(i) for i in range(len(labels))])
    for label, picture in zip(labels, pixels, strict=True):
        file = tmp_path / f"folders/{label}/x.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(images.encode_png(picture))
    np.savez(tmp_path / "same.npz", images=pixels, labels=labels)
    return str(tmp_path / "folders"), str(tmp_path / "same.npz")


def test_folders_and_an_npz_with_the_same_labels_agree(numbered):
    folder, file = numbered
    expected = sources.load(folder, 24)
    assert expected.classes == ("0", "1", "2", "9", "10", "11")
    found = sources.load(file, 24, class_names=expected.classes, positional=False)
    class_of = {
        im.tobytes(): expected.classes[k]
        for im, k in zip(expected.images, expected.labels, strict=True)
    }
    for picture, label in zip(found.images, found.labels, strict=True):
        assert class_of[picture.tobytes()] == found.classes[label]


def test_a_file_without_names_is_an_error_if_its_order_is_unknown(numbered):
    with pytest.raises(UserError, match=r"same.npz: names no classes, and its labels 0..11 need"):
        sources.load(numbered[1], 24, class_names=tuple("abcdefghijkl"), positional=False)


def test_says_what_each_kind_of_source_is(folder, zipped, challenge):
    found = [sources.load(str(spec), 24).reading for spec in (folder, zipped, challenge)]
    assert [reading.spec for reading in found] == [str(folder), str(zipped), str(challenge)]
    assert [reading.layout for reading in found] == [
        *("class folders", "class folders", "npz of images and labels"),
    ]
    assert sources.load("synthetic:16", 32).reading.layout == "rendered cells"


def test_image_folders_of_the_hub_are_folders(folder):
    (folder / "dataset_info.json").write_text('{"features": {}, "splits": {}}')
    (folder / "README.md").write_text("---")
    assert sources.load(str(folder), 24).classes == ("a", "b", "c")
    assert sources.native_size(str(folder)) is None


def test_a_table_of_the_hub_is_no_folder_of_images(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"found 1 .parquet; export them as image files"):
        sources.load(str(tmp_path), 24)


def test_the_layout_can_be_stated(tmp_path):
    for i, name in enumerate(["train/a", "test/b"]):
        file = tmp_path / f"cells/{name}/1.png"
        file.parent.mkdir(parents=True)
        file.write_bytes(images.encode_png(image(i)))
    found = sources.load(str(tmp_path / "cells"), 24)
    assert (found.classes, found.splits) == (("a", "b"), ("test", "train"))
    stated = sources.load(str(tmp_path / "cells"), 24, options=ReadOptions(layout="class/other"))
    assert (stated.classes, stated.splits) == (("test", "train"), ("", ""))


def test_class_names_order_the_names_that_an_npz_holds(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((2, 8, 8, 3), np.uint8), labels=[0, 1], classes=["x", "y"])
    assert sources.load(str(path), 8, class_names=["y", "z", "x"]).labels.tolist() == [2, 0]


def test_a_class_that_is_not_among_class_names_is_an_error(folder):
    with pytest.raises(UserError, match=r"cells: contains the class c, expected only a, b$"):
        sources.load(str(folder), 24, class_names=("a", "b"))


def test_an_empty_class_folder_is_an_error(folder):
    (folder / "d").mkdir()
    with pytest.raises(UserError, match=r"cells: no image of d, expected .* \(a, b, c, d\)"):
        sources.load(str(folder), 24)
    assert len(sources.load(str(folder), 24, class_names=tuple("abcd"))) == 6


def test_a_class_without_readable_images_is_an_error(folder, caplog):
    for name in ("1.png", "2.png"):
        (folder / "b" / name).write_bytes(b"")
    with caplog.at_level(logging.ERROR), pytest.raises(UserError, match="cells: no image of b,"):
        sources.load(str(folder), 24, options=ReadOptions("skip"))


def test_a_cell_type_without_images_is_an_error(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, images=np.zeros((6, 8, 8, 3), np.uint8), labels=np.arange(6))
    with pytest.raises(UserError, match=r"a.npz: no image of neutrophil, platelet, expected"):
        sources.load(str(path), 8)


@pytest.mark.parametrize("read", [lambda spec: sources.load(spec, 8), sources.fingerprint])
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:mnist:3.0.1", "it is not in .*, and bloodjax does not download it: build it with"),
        ("gs:///cells.zip", "names no bucket, expected gs://BUCKET/NAME or s3://BUCKET/NAME"),
        ("https://host/cells.npz", "https:// is not supported, expected a local path, gs://"),
        ("synthetic:", "expected synthetic:N"),
        ("synthetic:0", "expected synthetic:N"),
        ("synthetic:-3", "expected synthetic:N"),
        ("synthetic:many", "'many' images, expected synthetic:N"),
        ("nowhere/cells.zip", "no such file or folder"),
        ("nowhere", "no such file or folder"),
    ],
)
def test_a_bad_spec_is_one_line_that_names_it(read, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        read(spec)
    assert str(caught.value).startswith(f"{spec}: ")


@pytest.mark.parametrize("read", [lambda spec: sources.load(spec, 8), sources.fingerprint])
def test_a_file_of_another_kind_is_an_error(tmp_path, read):
    (tmp_path / "cells.txt").write_text("name,label\n")
    with pytest.raises(UserError, match=r"cells.txt: neither npz nor zip, expected FILE.npz, a"):
        read(str(tmp_path / "cells.txt"))
    (tmp_path / "cells.zip").write_text("name,label\n")
    with pytest.raises(UserError, match=r"cells.zip: not a zip file"):
        read(str(tmp_path / "cells.zip"))


def test_fingerprint_of_a_file_follows_its_content_alone(zipped, challenge):
    for path in (zipped, challenge):
        before = sources.fingerprint(str(path))
        os.utime(path, (0, 0))
        moved = path.rename(path.with_stem("moved"))
        assert sources.fingerprint(str(moved)) == before
    with zipfile.ZipFile(zipped.with_stem("moved"), "a") as file:
        file.writestr("a/3.png", b"")
    assert sources.fingerprint(str(zipped.with_stem("moved"))) != before
    challenge_before = sources.fingerprint(str(challenge.with_stem("moved")))
    np.savez(challenge, images=np.zeros((8, 24, 24, 3), np.uint8), labels=np.arange(8)[:, None])
    assert sources.fingerprint(str(challenge)) != challenge_before


def test_fingerprint_of_a_folder_follows_its_files(folder):
    before = sources.fingerprint(str(folder))
    (folder / ".DS_Store").write_bytes(b"junk")
    assert sources.fingerprint(str(folder)) == before
    (folder / "a/1.png").rename(folder / "a/3.png")
    renamed = sources.fingerprint(str(folder))
    assert renamed != before
    (folder / "a/3.png").write_bytes(b"longer" * 999)
    assert sources.fingerprint(str(folder)) != renamed


def test_fingerprint_of_synthetic_cells_is_their_number():
    assert sources.fingerprint("synthetic:16") == "synthetic:16"
    assert sources.fingerprint("synthetic") == f"synthetic:{DEFAULT_SYNTHETIC}"


@pytest.mark.parametrize("source", ["zipped", "challenge"])
def test_random_damage_is_read_or_refused_in_one_line(source, request):
    path = request.getfixturevalue(source)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refusals = []
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            sources.load(str(path), 24)
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert all(line.startswith(f"{path}: ") for line in refusals)


@pytest.mark.parametrize("source", ["folder", "zipped"])
def test_what_outgrows_the_memory_stays_lazy(source, request, monkeypatch):
    path = str(request.getfixturevalue(source))
    expected = sources.load(path, 16)
    assert isinstance(expected.images, np.ndarray)
    monkeypatch.setattr(lazy, "host_memory", lambda: 4 * 6 * 16**2 * 3 - 1)
    found = sources.load(path, 16)
    assert isinstance(found.images, lazy.LazyImages)
    assert_same(found, expected)
    unlabelled = sources.load_images(path, 16)
    assert isinstance(unlabelled.images, lazy.LazyImages)
    np.testing.assert_array_equal(unlabelled.images[:], expected.images)
    assert unlabelled.names == expected.names


def test_unreadable_images_are_left_out_lazy_too(folder, caplog):
    (folder / "b/2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"b/2.png is not a readable image"):
        sources.load(str(folder), 24, lazy=True)
    dataset = sources.load(str(folder), 24, options=ReadOptions("skip"), lazy=True)
    assert dataset.names == ("a/1.png", "a/2.png", "b/1.png", "c/1.png", "c/2.png")
    np.testing.assert_array_equal(dataset.images[2], image(0))


def test_an_image_that_has_gone_since_is_named(folder):
    dataset = sources.load(str(folder), 24, lazy=True)
    (folder / "b/1.png").unlink()
    with pytest.raises(UserError, match=r"cells: b/1.png is not a readable image \(cannot be read"):
        dataset.images[:]


def test_native_size(folder, challenge, tmp_path):
    assert sources.native_size(str(folder)) is None
    assert sources.native_size(str(challenge)) == 24
    np.savez(tmp_path / "wide.npz", train_images=np.zeros((2, 8, 9), np.uint8), train_labels=[0, 1])
    with pytest.raises(UserError, match="train_images has 8x9 pixels, expected square ones"):
        sources.native_size(str(tmp_path / "wide.npz"))


@pytest.mark.parametrize("form", ["folder", "zip", "npz", "shards"])
def test_a_source_in_a_bucket_is_the_local_one(bucket, folder, zipped, challenge, tmp_path, form):
    paths = {"folder": folder, "zip": zipped, "npz": challenge, "shards": tmp_path / "packed"}
    if form == "shards":
        packing.pack(sources.load(str(folder), 24), paths[form], as_pixels=True)
    path, url = str(paths[form]), bucket / f"data/{paths[form].name}"
    remote.upload(paths[form], url)
    there = sources.load(url, 16)
    assert_same(there, sources.load(path, 16))
    assert there.reading.spec == url
    assert sources.fingerprint(url) == sources.fingerprint(path)
    assert sources.has_fingerprint(url, sources.fingerprint(path))
    assert sources.native_size(url) == sources.native_size(path)
    if form != "shards":
        here, there = (sources.load_images(each, 16) for each in (path, url))
        assert_same(here, there)
        read = own_size.reader(url, there)
        np.testing.assert_array_equal(read(1), own_size.reader(path, here)(1))


def test_one_image_in_a_bucket(make_bucket, folder):
    url = make_bucket("s3") / "slides/a 1.png"
    remote.upload(folder / "a/1.png", url)
    dataset = sources.load_images(url, 24)
    assert dataset.names == ("a 1.png",)
    np.testing.assert_array_equal(dataset.images[0], image(4))
    np.testing.assert_array_equal(own_size.reader(url, dataset)(0), image(4))


def test_a_source_that_is_not_in_its_bucket_is_one_line(make_bucket):
    url = make_bucket("s3") / "cells.zip"
    for read in (lambda: sources.load(url, 8), lambda: sources.load_images(url, 8)):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == f"{url}: no such object or folder in the bucket"
    buckets.write_bytes(url, b"no zip")
    with pytest.raises(UserError, match=r"cells\.zip") as caught:
        sources.load(url, 8)
    assert message_urls.with_urls(str(caught.value)).startswith(f"{url}: ")


def test_a_folder_called_synthetic_is_meant_if_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.load("synthetic:8", 16).reading.layout == "rendered cells"
    for name in ("synthetic", "synthetic:8"):
        for label in ("blast", "normal"):
            (tmp_path / name / label).mkdir(parents=True)
            picture = images.encode_png(np.zeros((16, 16, 3), np.uint8))
            (tmp_path / name / label / "1.png").write_bytes(picture)
        dataset = sources.load(name, 16)
        assert dataset.classes == ("blast", "normal")
        assert "the folder of this name, no rendered cells" in dataset.reading.details
        assert sources.fingerprint(name) == sources.fingerprint(f"./{name}")
        assert len(sources.load_images(name, 16)) == 2


def test_groups_of_images_to_classify(tmp_path, caplog):
    cells = render.render_dataset(8, 16, seed=0).images
    for i, cell in enumerate(cells):
        path = tmp_path / f"cells/{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode_png(cell))
    rows = "".join(f"{i % 2}/{i}.png,P{i // 3}\n" for i in range(7))
    (tmp_path / "cells/groups.csv").write_text("name,group\n" + rows)
    folder = sources.load_images(str(tmp_path / "cells"), 16)
    expected = {f"{i % 2}/{i}.png": f"P{i // 3}" if i < 7 else "" for i in range(8)}
    assert dict(zip(folder.names, folder.groups, strict=True)) == expected
    assert folder.reading.left_out == ()
    assert not caplog.records
    (tmp_path / "cells/images.csv").write_text("path,patient\n" + rows)
    table = sources.load_images(str(tmp_path / "cells/images.csv"), 16)
    assert table.groups == tuple(f"P{i // 3}" for i in range(7))
    np.savez(tmp_path / "a.npz", images=cells, groups=np.arange(8) // 4)
    assert sources.load_images(str(tmp_path / "a.npz"), 16).groups == tuple("00001111")
    np.savez(tmp_path / "b.npz", images=cells)
    assert sources.load_images(str(tmp_path / "b.npz"), 16).groups == ("",) * 8
