import logging
import zipfile

import numpy as np
import pytest

from bloodjax.data import images
from bloodjax.data.formats import folders
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError


def image(seed, side=24):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def cells(*names):
    """A PNG for each name; the image is drawn from the name's place."""
    return {name: images.encode_png(image(i)) for i, name in enumerate(names)}


def write(root, files, form):
    if form == "zip":
        path = root / "cells.zip"
        with zipfile.ZipFile(path, "w") as zipped:
            for name, content in files.items():
                zipped.writestr(name, content)
        return path
    path = root / "cells"
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.fixture(params=["folder", "zip"])
def form(request):
    return request.param


def test_reads_class_folders_sorted_by_name(tmp_path, form):
    files = cells("b/x.png", "a/2.png", "a/10.png", "c/y.JPG") | {"README.txt": b"", "a/.x": b""}
    dataset = folders.read_dataset(write(tmp_path, files, form), 24)
    assert dataset.names == ("a/10.png", "a/2.png", "b/x.png", "c/y.JPG")
    assert dataset.classes == ("a", "b", "c")
    assert dataset.labels.tolist() == [0, 0, 1, 2]
    assert dataset.splits == dataset.groups == ("",) * 4
    for i, seed in enumerate([2, 1, 0, 3]):
        np.testing.assert_array_equal(dataset.images[i], image(seed))


def test_reads_split_folders_under_their_usual_names(tmp_path, form):
    files = cells("Training/a/1.png", "validation/b/2.png", "test/a/3.png", "valid/a/4.png")
    dataset = folders.read_dataset(write(tmp_path, files, form), 24)
    assert dataset.names == tuple(sorted(files))
    assert dataset.splits == ("train", "test", "val", "val")
    assert dataset.classes == ("a", "b")
    assert dataset.labels.tolist() == [0, 0, 0, 1]


def test_a_single_split_is_no_class(tmp_path, form):
    dataset = folders.read_dataset(write(tmp_path, cells("val/a/1.png", "val/b/1.png"), form), 24)
    assert dataset.splits == ("val", "val")
    assert dataset.classes == ("a", "b")


@pytest.mark.parametrize("inside", ["a/1.png", "train/a/1.png"])
def test_looks_through_a_folder_around_everything(tmp_path, form, inside):
    files = cells(f"my/cells/{inside}", f"my/cells/{inside.replace('a/1', 'b/2')}")
    files["__MACOSX/my/._cells"] = b"junk"
    files["my/cells/groups.csv"] = f"name,group\n{inside},p7\n".encode()
    dataset = folders.read_dataset(write(tmp_path, files, form), 24)
    assert dataset.names == (f"my/cells/{inside}", f"my/cells/{inside.replace('a/1', 'b/2')}")
    assert dataset.classes == ("a", "b")
    assert dataset.groups == ("p7", "")


def test_a_single_class_is_no_folder_around_everything(tmp_path, form):
    dataset = folders.read_dataset(write(tmp_path, cells("a/1.png", "a/2.png"), form), 24)
    assert (dataset.classes, dataset.names) == (("a",), ("a/1.png", "a/2.png"))


def test_an_empty_class_folder_is_a_class(tmp_path, form):
    path = write(tmp_path, cells("train/b/1.png") | {"train/a/.keep": b""}, form)
    if form == "zip":
        with zipfile.ZipFile(path, "a") as zipped:
            zipped.writestr("train/a/", b"")
    dataset = folders.read_dataset(path, 24)
    assert dataset.classes == ("a", "b")
    assert dataset.labels.tolist() == [1]


def test_groups_csv_gives_groups(tmp_path, form):
    table = '\ufeffname,group\r\na/1.png,"slide, 1"\r\n\r\nb/2.png,7\r\n'
    files = cells("a/1.png", "b/2.png", "b/3.png") | {"groups.csv": table.encode()}
    dataset = folders.read_dataset(write(tmp_path, files, form), 24)
    assert dataset.groups == ("slide, 1", "7", "")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"file,patient\na/1.png,1\n", "groups.csv does not have just the columns name,group"),
        (b"name,group\na/1.png\n", "groups.csv does not have just the columns name,group"),
        (b"", "groups.csv does not have just the columns name,group"),
        (b"name,group\na/9.png,1\n", "groups.csv names a/9.png, but there is no such image"),
        (b"name,group\n\xff\xfe,1\n", "groups.csv cannot be read as CSV in UTF-8"),
    ],
)
def test_a_bad_groups_csv_is_an_error(tmp_path, form, table, message):
    path = write(tmp_path, cells("a/1.png") | {"groups.csv": table}, form)
    with pytest.raises(UserError, match=message) as caught:
        folders.read_dataset(path, 24)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.png"],
        ["a/1.png", "2.png"],
        ["a/1.png", "b/slide/2.png"],
        ["train/a/1.png", "extra/2.png"],
        ["train/1.png"],
    ],
)
def test_another_layout_is_an_error(tmp_path, form, names):
    path = write(tmp_path, cells(*names), form)
    with pytest.raises(
        UserError, match=r"png is out of place, expected <class>/<image> or"
    ) as caught:
        folders.read_dataset(path, 24)
    assert str(caught.value).startswith(f"{path}: ")


def test_no_images_is_an_error(tmp_path, form):
    path = write(tmp_path, {"README.txt": b"none yet"}, form)
    with pytest.raises(UserError, match="contains no readable images, expected <class>/<image>"):
        folders.read_dataset(path, 24)


@pytest.fixture
def with_bad(tmp_path, form):
    files = cells(*[f"a/{i:03}.png" for i in range(150)], "b/1.png")
    files["a/070.png"] = files["a/070.png"][:200]
    files["a/140.txt"] = b"a note"
    return write(tmp_path, files, form)


def test_the_first_bad_image_is_named(with_bad):
    with pytest.raises(
        UserError, match=r"a/070.png is not a readable image \(.*truncated"
    ) as caught:
        folders.read_dataset(with_bad, 24)
    assert str(caught.value).startswith(f"{with_bad}: ")
    assert "config.data.bad_images=skip" in str(caught.value)


def test_bad_images_can_be_skipped(with_bad, caplog):
    with caplog.at_level(logging.WARNING):
        dataset = folders.read_dataset(with_bad, 24, ReadOptions("skip"))
    assert "skipped 2 unreadable images: a/070.png, a/140.txt" in caplog.text
    assert len(dataset) == 150
    assert not {"a/070.png", "a/140.txt"} & set(dataset.names)
    np.testing.assert_array_equal(dataset.images[70], image(71))
    assert dataset.labels.tolist() == [0] * 149 + [1]


def test_nothing_but_bad_images_is_an_error(tmp_path, form):
    path = write(tmp_path, {"a/1.png": b"", "b/1.png": b""}, form)
    with pytest.raises(UserError, match="contains no readable images"):
        folders.read_dataset(path, 24, ReadOptions("skip"))
