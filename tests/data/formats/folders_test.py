import logging
import os
import unicodedata
import zipfile

import numpy as np
import pytest

from bloodjax.data import images
from bloodjax.data.formats import folders
from bloodjax.data.options import ReadOptions
from bloodjax.data.reading import LeftOut
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


def test_says_how_it_was_read(tmp_path, form):
    table = b"name,group\na/1.png,p1\na/2.png,p1\n"
    files = cells("train/a/1.png", "train/a/2.png", "val/b/3.png", "unlabelled/4.png")
    files |= {"train/groups.csv": table, "Thumbs.db": b"", "train/a/5.png": b""}
    reading = folders.read_dataset(write(tmp_path, files, form), 24, ReadOptions("skip")).reading
    assert reading.layout == "split and class folders"
    assert reading.details == ("train/groups.csv: 1 group, none for 2 of 4 images",)
    assert set(reading.left_out) == {
        LeftOut("hidden or of the system", "", 1),
        LeftOut("without a class, in unlabelled", "", 1),
        LeftOut("unreadable", "a", 1),
    }


def test_whole_numbers_are_classes_in_the_order_of_their_values(tmp_path, form):
    files = cells(*[f"{label}/1.png" for label in (10, 0, 2, 11, 1)])
    dataset = folders.read_dataset(write(tmp_path, files, form), 24)
    assert dataset.classes == ("0", "1", "2", "10", "11")
    assert [dataset.classes[label] for label in dataset.labels] == ["0", "1", "10", "11", "2"]


NFD = unicodedata.normalize("NFD", "é")


@pytest.mark.parametrize("other", [NFD, "É", "é ", " é"])
def test_folders_that_differ_in_form_are_one_class(tmp_path, form, other):
    files = cells("train/é/1.png", "train/é/2.png", "train/z/1.png", f"test/{other}/1.png")
    path = write(tmp_path, files, form)
    dataset = folders.read_dataset(path, 24)
    assert dataset.classes == ("z", "é")
    assert np.bincount(dataset.labels).tolist() == [1, 3]
    (detail,) = dataset.reading.details
    assert detail.endswith(" taken as é")
    assert detail.isprintable()
    assert folders.read_dataset(path, 24, class_names=["É", "z"]).classes == ("z", "É")


def test_classes_of_the_same_form_that_are_both_listed_stay_two(tmp_path, form):
    path = write(tmp_path, cells("A/1.png", "a/1.png"), form)
    assert folders.read_dataset(path, 24).classes == ("A",)
    assert folders.read_dataset(path, 24, class_names=("a", "A")).classes == ("A", "a")


def test_a_folder_name_that_is_not_utf8_is_matched_to_its_text(tmp_path):
    path = write(tmp_path, cells("train/café/1.png", "test/caf_/1.png"), "folder")
    os.rename(os.fsencode(path) + b"/test/caf_", os.fsencode(path) + b"/test/caf\xe9")
    dataset = folders.read_dataset(path, 24)
    assert (dataset.classes, dataset.splits) == (("café",), ("test", "train"))
    np.testing.assert_array_equal(dataset.images[0], image(1))
    assert dataset.reading.details == ("names that are not UTF-8 read as Windows-1252: café",)


def test_a_table_of_groups_comes_before_folders(tmp_path, form):
    table = b"name,group\na/p1/1.png,other\n"
    files = cells("a/p1/1.png", "a/p1/2.png", "b/p2/1.png") | {"groups.csv": table}
    dataset = folders.read_dataset(write(tmp_path, files, form), 24)
    assert dataset.groups == ("other", "p1", "p2")


def test_a_table_of_groups_beside_the_source_is_named(tmp_path, form, caplog):
    path = write(tmp_path, cells("a/1.png"), form)
    (tmp_path / "groups.csv").write_text("name,group\na/1.png,p1\n")
    folders.read_dataset(path, 24)
    assert f"{path}: groups.csv beside it is not read, expected in it" in caplog.text


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
        ["train/a/1.png", "extra/b/2.png"],
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
    expected = r"contains no readable images \(found 1 .txt\), expected <class>/<image>"
    with pytest.raises(UserError, match=expected):
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
