import numpy as np
import pytest

from bloodjax.data import sources, statement
from bloodjax.data.formats import medmnist, npz
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError

from . import medmnist_files

CHEST = medmnist.SETS["chestmnist"].classes


@pytest.mark.parametrize("name", medmnist.SETS)
def test_a_file_of_each_set_loads_with_its_splits_and_names(tmp_path, name):
    path = medmnist_files.write(tmp_path / f"{name}.npz", name)
    dataset = sources.load(str(path), 28)
    known = medmnist.SETS[name]
    assert dataset.classes == known.classes
    assert dataset.is_multi_label == known.is_multi_label
    assert [dataset.splits.count(split) for split in ("train", "val", "test")] == [28, 14, 14]
    with np.load(path) as stored:
        expected = np.concatenate([stored[f"{s}_labels"] for s in ("train", "val", "test")])
        images = stored["test_images"]
    np.testing.assert_array_equal(dataset.labels.reshape(expected.shape), expected)
    rgb = np.repeat(images[..., None], 3, axis=-1) if known.is_grey else images
    np.testing.assert_array_equal(dataset.images[-14:], rgb)


def test_names_channels_and_tasks_are_those_of_medmnist():
    info = pytest.importorskip("medmnist", reason="medmnist is not installed").INFO
    flat = {name: found for name, found in info.items() if not name.endswith("3d")}
    assert flat.keys() == medmnist.SETS.keys()
    for name, found in flat.items():
        known = medmnist.SETS[name]
        assert known.is_grey == (found["n_channels"] == 1)
        assert known.is_multi_label == found["task"].startswith("multi-label")
        if name != "bloodmnist":  # One of its names is too long for a table.
            assert known.classes == tuple(found["label"].values())
        assert len(known.classes) == len(found["label"])


@pytest.mark.parametrize("side", [28, 64, 128, 224])
def test_a_file_of_another_size_is_known_too(tmp_path, side):
    assert medmnist.find(tmp_path / f"octmnist_{side}.npz") is medmnist.SETS["octmnist"]
    assert medmnist.find(tmp_path / f"my_octmnist_{side}.npz") is None


def test_images_of_224_pixels_are_read(tmp_path):
    path = medmnist_files.write(
        tmp_path / "pneumoniamnist_224.npz", "pneumoniamnist", counts=(2, 2, 2), size=224
    )
    assert sources.native_size(str(path)) == 224
    assert sources.load(str(path), 224).images.shape == (6, 224, 224, 3)


def test_a_file_of_another_name_has_numbered_classes(tmp_path):
    path = medmnist_files.write(tmp_path / "mine.npz", "octmnist")
    assert sources.load(str(path), 28).classes == ("class_0", "class_1", "class_2", "class_3")


def test_a_file_of_a_set_with_other_labels_has_numbered_classes(tmp_path):
    path = medmnist_files.write(tmp_path / "pneumoniamnist.npz", "octmnist")
    assert sources.load(str(path), 28).classes == ("class_0", "class_1", "class_2", "class_3")


def test_the_names_of_a_file_are_said(tmp_path):
    path = medmnist_files.write(tmp_path / "dermamnist.npz", "dermamnist")
    assert "class names of MedMNIST" in npz.read_dataset(path, 28, ()).reading.details[0]


def test_a_run_that_numbered_the_classes_still_reads_its_file(tmp_path):
    path = medmnist_files.write(tmp_path / "octmnist.npz", "octmnist")
    old = ("class_0", "class_1", "class_2", "class_3")
    dataset = sources.load(str(path), 28, class_names=old)
    assert dataset.classes == old
    assert dataset.labels[:4].tolist() == [0, 1, 2, 3]


def test_several_labels_are_rows_of_zero_and_one_in_any_file(tmp_path):
    options = ReadOptions(task="multi-label")
    path = medmnist_files.write(tmp_path / "mine.npz", "chestmnist")
    dataset = npz.read_dataset(path, 28, (), options)
    assert dataset.classes == tuple(f"class_{i}" for i in range(14))
    assert npz.read_dataset(path, 28, CHEST, options).classes == CHEST
    np.testing.assert_array_equal(dataset.class_counts, dataset.labels.sum(axis=0))
    # The image without a label is a stratum of its own; the others have their rarest label.
    assert dataset.strata[0] == 14
    row = dataset.strata[1:]
    assert (dataset.labels[np.arange(1, len(dataset)), np.minimum(row, 13)][row < 14] == 1).all()
    assert dataset.label_texts()[0] == ""
    assert dataset.label_texts()[1].split(";") == [
        f"class_{i}" for i in np.flatnonzero(dataset.labels[1])
    ]


def test_several_labels_follow_the_order_that_is_asked_for(tmp_path):
    path = medmnist_files.write(tmp_path / "chestmnist.npz", "chestmnist")
    own = sources.load(str(path), 28)
    other = sources.in_label_order(own, CHEST[::-1])
    np.testing.assert_array_equal(other.labels, own.labels[:, ::-1])


def test_the_statement_counts_labels_and_images_without_one(tmp_path):
    path = medmnist_files.write(tmp_path / "chestmnist.npz", "chestmnist")
    dataset = sources.load(str(path), 28)
    line = statement.lines({"all": dataset})[1]
    assert line.startswith(f"14 labels: atelectasis {dataset.class_counts[0]}, ")
    assert line.endswith("; none 3; images 56")


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (np.eye(4)[[0, 1, 2, 3]] + np.eye(4)[[1, 2, 3, 0]], ReadOptions(), "row 0 has 2 labels"),
        (np.full((4, 3), 2), ReadOptions(task="multi-label"), r"\[0, 0\] is 2, expected 0 or 1"),
        (np.zeros((4, 1)), ReadOptions(task="multi-label"), "of shape \\(N, labels\\)"),
    ],
)
def test_other_labels_are_one_line(tmp_path, labels, options, message):
    path = tmp_path / "a.npz"
    np.savez(path, train_images=np.zeros((4, 28, 28), np.uint8), train_labels=labels)
    with pytest.raises(UserError, match=message) as error:
        npz.read_dataset(path, 28, (), options)
    assert "\n" not in str(error.value)


def test_other_numbers_of_columns_are_one_line(tmp_path):
    path, images = tmp_path / "a.npz", np.zeros((4, 28, 28), np.uint8)
    labels = {"train_labels": np.eye(4, 5), "val_labels": np.eye(4, 6)}
    np.savez(path, train_images=images, val_images=images, **labels)
    options = ReadOptions(task="multi-label")
    with pytest.raises(UserError, match=r"val_labels has 6 columns of labels, expected 5"):
        npz.read_dataset(path, 28, (), options)
    np.savez(path, train_images=images, train_labels=labels["train_labels"])
    with pytest.raises(UserError, match=r"has 5 columns of labels, expected 2 \(a, b\)"):
        npz.read_dataset(path, 28, ("a", "b"), options)


def test_a_source_with_one_class_each_is_refused_where_several_labels_are_expected():
    with pytest.raises(UserError, match=r"one class for each image, but config.data.task"):
        sources.load("synthetic:8", 28, options=ReadOptions(task="multi-label"))


def test_shards_do_not_store_several_labels(tmp_path):
    from bloodjax.data import packing

    path = medmnist_files.write(tmp_path / "chestmnist.npz", "chestmnist")
    dataset = sources.load(str(path), 28)
    with pytest.raises(UserError, match="expected one class each"):
        packing.pack(dataset, tmp_path / "out", as_pixels=True)
