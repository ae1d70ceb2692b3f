import numpy as np
import pytest
from PIL import Image

from bloodjax.data import images as images_lib
from bloodjax.data.formats import npz
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError

N = 16
LABELS = np.arange(N) % 8


def random_images(n=N, side=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)


def write(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def challenge(path, **changes):
    return write(path, **({"images": random_images(), "labels": LABELS} | changes))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64, np.float32])
@pytest.mark.parametrize("shape", [(N,), (N, 1)])
def test_reads_a_challenge_file(tmp_path, dtype, shape):
    path = challenge(tmp_path / "training_set.npz", labels=LABELS.astype(dtype).reshape(shape))
    dataset = npz.read_dataset(path, 20, ())
    np.testing.assert_array_equal(dataset.images, random_images())
    np.testing.assert_array_equal(dataset.labels, LABELS)
    assert dataset.classes == npz.BLOOD_CELLS
    assert dataset.names == tuple(str(i) for i in range(N))
    assert set(dataset.splits) == set(dataset.groups) == {""}


def test_resizes_to_the_size_that_is_asked_for(tmp_path):
    dataset = npz.read_dataset(challenge(tmp_path / "a.npz"), 10, ())
    expected = Image.fromarray(random_images()[5]).resize((10, 10), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(dataset.images[5], np.asarray(expected))


def test_a_challenge_file_may_name_classes_and_groups(tmp_path):
    groups = np.arange(N) // 4
    classes = np.array(list("hgfedcba"))
    path = challenge(tmp_path / "a.npz", classes=classes, groups=groups)
    dataset = npz.read_dataset(path, 20, ("not", "these"))
    assert dataset.classes == tuple("hgfedcba")
    assert dataset.groups == tuple(str(g) for g in groups)


def test_a_challenge_file_without_names_takes_those_given(tmp_path):
    path = challenge(tmp_path / "a.npz", labels=np.zeros(N, int))
    assert npz.read_dataset(path, 20, ("x", "y")).classes == ("x", "y")


def medmnist(path, n_classes=8, grey=False, **changes):
    arrays = {}
    for seed, (split, n) in enumerate({"train": 16, "val": 9, "test": 10}.items()):
        images = random_images(n, seed=seed)
        arrays[f"{split}_images"] = images[..., 0] if grey else images
        arrays[f"{split}_labels"] = (np.arange(n) % n_classes).astype(np.uint8)[:, None]
    return write(path, **(arrays | changes))


def test_reads_a_medmnist_file(tmp_path):
    dataset = npz.read_dataset(medmnist(tmp_path / "bloodmnist_64.npz"), 20, ())
    assert len(dataset) == 35
    assert dataset.classes == npz.BLOOD_CELLS
    assert dataset.splits == ("train",) * 16 + ("val",) * 9 + ("test",) * 10
    assert (dataset.names[0], dataset.names[16], dataset.names[-1]) == (
        "train/0",
        "val/0",
        "test/9",
    )
    np.testing.assert_array_equal(dataset.images[16:25], random_images(9, seed=1))
    np.testing.assert_array_equal(dataset.labels[25:], np.arange(10) % 8)


def test_a_medmnist_file_may_be_grey_and_of_other_classes(tmp_path):
    path = medmnist(tmp_path / "mine.npz", n_classes=2, grey=True)
    dataset = npz.read_dataset(path, 20, ())
    assert dataset.classes == ("class_0", "class_1")
    np.testing.assert_array_equal(dataset.images[:16, :, :, 2], random_images()[..., 0])
    assert npz.read_dataset(path, 20, ("benign", "malignant")).classes == ("benign", "malignant")


def test_a_name_that_is_not_of_medmnist_does_not_decide(tmp_path):
    found = [medmnist(tmp_path / name) for name in ("bloodmnist.npz", "cells.npz")]
    assert {npz.read_dataset(path, 20, ()).classes for path in found} == {npz.BLOOD_CELLS}
    assert {npz.read_dataset(path, 20, tuple("abcdefgh")).classes for path in found} == {
        tuple("abcdefgh")
    }
    grey = medmnist(tmp_path / "my_tissuemnist.npz", grey=True)
    assert npz.read_dataset(grey, 20, ()).classes[0] == "class_0"


def test_says_how_it_was_read(tmp_path):
    reading = npz.read_dataset(challenge(tmp_path / "a.npz"), 20, ()).reading
    assert reading.layout == "npz of images and labels"
    assert reading.details == ("without names: BloodMNIST's eight classes",)
    reading = npz.read_dataset(medmnist(tmp_path / "b.npz", n_classes=3), 20, ()).reading
    assert (reading.layout, reading.details) == ("npz of splits, as MedMNIST's", ())


@pytest.mark.parametrize(
    "groups",
    [
        np.arange(N) % 3,
        (np.arange(N) % 3).astype(float),
        (np.arange(N) % 3).astype("S"),
        (np.arange(N) % 3)[:, None],
        np.array([f" {i % 3} " for i in range(N)]),
    ],
    ids=["integers", "floats", "bytes", "a column", "blanks"],
)
def test_groups_of_any_clear_kind_are_taken(tmp_path, groups):
    dataset = npz.read_dataset(challenge(tmp_path / "a.npz", groups=groups), 20, ())
    assert dataset.groups == tuple(str(i % 3) for i in range(N))
    assert "3 groups" in dataset.reading.details


def test_groups_of_one_form_are_one(tmp_path):
    groups = np.array(["P1", "p1 ", "P1", "\u00e9", "e\u0301", "", "p2", "p3"] * 2)
    dataset = npz.read_dataset(challenge(tmp_path / "a.npz", groups=groups), 20, ())
    assert dataset.groups == ("P1", "P1", "P1", "\u00e9", "\u00e9", "", "p2", "p3") * 2
    assert "4 groups, none for 2 of 16 images" in dataset.reading.details


def test_missing_groups_are_said(tmp_path, caplog):
    groups = np.where(np.arange(N) < 12, np.nan, 7)
    dataset = npz.read_dataset(challenge(tmp_path / "a.npz", groups=groups), 20, ())
    assert dataset.groups == ("",) * 12 + ("7",) * 4
    assert "1 group, none for 12 of 16 images" in dataset.reading.details
    assert "a.npz: no key in groups for 12 of 16 images" in caplog.text


def test_an_array_that_may_be_meant_as_groups_is_named(tmp_path, caplog):
    path = challenge(tmp_path / "a.npz", patient=np.arange(N), filenames=np.arange(N))
    dataset = npz.read_dataset(path, 20, ())
    assert set(dataset.groups) == {""}
    assert "a.npz: the array patient is not read; the keys of images" in caplog.text
    assert "unused arrays: filenames, patient" in dataset.reading.details


def test_a_table_of_groups_beside_the_file_is_named(tmp_path, caplog):
    (tmp_path / "groups.csv").write_text("name,group\n0,p1\n")
    npz.read_dataset(challenge(tmp_path / "a.npz"), 20, ())
    assert "a.npz: groups.csv beside it is not read; the keys of images" in caplog.text


def test_a_medmnist_file_may_name_classes_and_groups(tmp_path, caplog):
    more = {"classes": ["x", "y", "z"], "train_groups": np.arange(16), "test_groups": np.arange(10)}
    dataset = npz.read_dataset(medmnist(tmp_path / "a.npz", n_classes=3, **more), 20, ())
    assert dataset.classes == ("x", "y", "z")
    assert dataset.groups[:16] == tuple(map(str, range(16)))
    assert set(dataset.groups[16:25]) == {""}
    assert dataset.reading.details == ("16 groups, none for 9 of 35 images",)
    assert "a.npz: no key in train_groups, val_groups, test_groups for 9 of 35" in caplog.text


def test_counts_labels_without_reading_images(tmp_path):
    path = write(tmp_path / "a.npz", images=np.zeros(1), labels=np.eye(8)[LABELS])
    assert npz.count_labels(path) == ({"": N}, npz.BLOOD_CELLS)
    path = write(tmp_path / "b.npz", train_labels=np.array(["b", "a"]), val_labels=np.array(["a"]))
    assert npz.count_labels(path) == ({"train": 2, "val": 1}, ("a", "b"))


def nan_at_3():
    labels = LABELS.astype(float)
    labels[3] = np.nan
    return labels


BAD = {
    "pickled images": (
        {"images": np.array([None] * N)},
        "images cannot be read .*pickle.* expected an array",
    ),
    "pickled labels": ({"labels": LABELS.astype(object)}, "labels cannot be read .*pickle"),
    "dtype": ({"images": random_images() > 9}, r"images is bool .*expected .* uint8, uint16"),
    "normalised": ({"images": random_images() / 128 - 1}, r"images has values of -1..0.99"),
    "percent": ({"images": random_images() / 2.55}, r"floats of at most 100, expected integers"),
    "channels first": (
        {"images": random_images().transpose(0, 3, 1, 2)},
        r"\(16, 3, 20, 20\), expected .* but the channels come first",
    ),
    "rank": ({"images": random_images()[0]}, r"of shape \(20, 20, 3\), expected .* \(N, H, W, 3\)"),
    "alpha of 16 bits": (
        {"images": np.zeros((N, 9, 9, 4), np.uint16)},
        r"\(16, 9, 9, 4\), expected uint8 with a channel of opacity",
    ),
    "no images": (
        {"images": random_images()[:0], "labels": LABELS[:0]},
        "images .* expected at least one image",
    ),
    "out of range": (
        {"labels": np.where(np.arange(N) == 9, 8, LABELS)},
        r"labels\[9\] is 8, expected 0..7 \(basophil, .*config.data.classes=a,b,c",
    ),
    "negative": ({"labels": LABELS - 1}, r"labels\[0\] is -1, expected an integer of at least 0"),
    "huge": ({"labels": LABELS * 1e30}, r"labels\[1\] is 1e\+30, expected an integer"),
    "fractional": ({"labels": LABELS + 0.5}, r"labels\[0\] is 0.5, expected an integer"),
    "nan": ({"labels": nan_at_3()}, r"labels\[3\] is nan, expected an integer"),
    "complex": ({"labels": LABELS.astype(complex)}, "labels is complex.*expected an integer or"),
    "fewer": ({"labels": LABELS[:-1]}, r"shape \(15,\), expected .* shape \(16,\) or \(16, 1\)"),
    "more": (
        {"labels": np.append(LABELS, 0)},
        r"labels has the shape \(17,\), expected .* \(16,\)",
    ),
    "several labels": (
        {"labels": np.ones((N, 8))},
        r"shape \(16, 8\), where row 0 has 8 labels; expected one class for each image",
    ),
    "two kinds of file": (
        {"train_images": random_images(), "train_labels": LABELS},
        "expected either images and labels, or train_images and train_labels, but not both",
    ),
    "groups": ({"groups": np.arange(3)}, "groups has 3 entries, expected 16"),
    "classes": ({"classes": np.array(["a", "b", "a"])}, "classes names a class twice: a, b, a"),
    "classes 2-D": ({"classes": np.array([["a"]])}, "classes is .* expected a list of strings"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_challenge_file_is_one_line_that_names_it(tmp_path, changes, message):
    path = challenge(tmp_path / "bad.npz", **changes)
    with pytest.raises(UserError, match=message) as caught:
        npz.read_dataset(path, 20, ())
    assert str(caught.value).startswith(f"{path}: ")


def test_wrong_keys_are_listed(tmp_path):
    path = write(tmp_path / "bad.npz", x=random_images(), y=LABELS)
    with pytest.raises(UserError, match=r"bad.npz: contains the arrays x, y; expected images and"):
        npz.read_dataset(path, 20, ())
    path = write(tmp_path / "bad.npz", images=random_images())
    with pytest.raises(
        UserError, match=r"bad.npz: contains the arrays images; expected labels too"
    ):
        npz.read_dataset(path, 20, ())
    path = write(tmp_path / "bad.npz", train_images=random_images(), val_labels=LABELS)
    with pytest.raises(UserError, match=r"bad.npz: contains .* expected val_images too"):
        npz.read_dataset(path, 20, ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_labels": np.arange(9) + 2}, r"val_labels\[6\] is 8, expected 0..7 \(a, b"),
        (
            {"test_labels": np.zeros((10, 14))},
            r"test_labels .* \(10, 14\), where row 0 has 0 labels",
        ),
        ({"train_images": np.zeros((16, 9, 9, 9), np.uint8)}, r"or \(N, H, W\)"),
    ],
)
def test_a_bad_medmnist_file_is_one_line_that_names_it(tmp_path, changes, message):
    path = medmnist(tmp_path / "chestmnist.npz", **changes)
    with pytest.raises(UserError, match=message) as caught:
        npz.read_dataset(path, 20, tuple("abcdefgh"))
    assert str(caught.value).startswith(f"{path}: ")


def test_a_medmnist_label_above_the_number_of_images_is_an_error(tmp_path):
    path = medmnist(tmp_path / "a.npz", train_labels=np.full(16, 2_000_000_000))
    with pytest.raises(UserError, match=r"train_labels\[0\] is 2000000000, expected 0..34"):
        npz.read_dataset(path, 20, ())


def test_damage_is_an_error(tmp_path):
    path = tmp_path / "cut.npz"
    np.savez(path, images=random_images(), labels=LABELS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"cut.npz: truncated or damaged, expected a complete"):
        npz.read_dataset(path, 20, ())
    path.write_bytes(whole[:5000] + b"\xff\x00\xff" + whole[5003:])
    with pytest.raises(UserError, match=r"cut.npz: images cannot be read \(.*CRC"):
        npz.read_dataset(path, 20, ())
    path.write_bytes(b"\x80\x04K\x01.")  # a pickle
    with pytest.raises(UserError, match=r"cut.npz: not a zip file, expected a complete .npz"):
        npz.read_dataset(path, 20, ())


def test_an_array_that_claims_more_than_there_is_is_an_error(tmp_path):
    path = challenge(tmp_path / "bomb.npz")
    np.savez(path, images=random_images(), labels=LABELS)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"(16, 20, 20, 3)", b"(99, 99999, 99)", 1))
    with pytest.raises(UserError, match=r"bomb.npz: images "):
        npz.read_dataset(path, 20, ())


DEEP = {
    "12 bits": (lambda x: x.astype(np.uint16) * 16, "12"),
    "64 bits": (lambda x: x.astype(np.int64), "8"),
    "floats": (lambda x: (x / 255).astype(np.float32), "0..1"),
    "floats of 0..255": (lambda x: x.astype(np.float16), "8"),
}


@pytest.mark.parametrize(("convert", "scale"), DEEP.values(), ids=DEEP.keys())
def test_values_of_more_than_8_bits_have_one_scale(tmp_path, convert, scale):
    pixels = random_images()
    pixels[0, 0, 0] = 255
    dataset = npz.read_dataset(challenge(tmp_path / "a.npz", images=convert(pixels)), 20, ())
    np.testing.assert_array_equal(dataset.images, pixels)
    assert dataset.reading.tally.scale == scale
    assert dataset.reading.tally.deep == N
    images, _, tally = npz.read_images(tmp_path / "a.npz", 20)
    np.testing.assert_array_equal(images, pixels)
    assert tally == dataset.reading.tally


def test_the_splits_of_a_file_have_one_scale(tmp_path):
    path = medmnist(tmp_path / "a.npz")
    arrays = dict(np.load(path))
    expected = npz.read_dataset(path, 20, ()).images
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = arrays[f"{split}_images"].astype(np.uint16) * 8
    dark = arrays["val_images"] // 16
    np.savez(path, **arrays | {"val_images": dark})
    found = npz.read_dataset(path, 20, (), ReadOptions(bits="12"))
    splits = np.array(found.splits)
    np.testing.assert_array_equal(found.images[splits == "train"], expected[splits == "train"] // 2)
    assert found.images[splits == "val"].max() < 10
    with pytest.raises(UserError, match=r"train_images has integers of at most .* 10 bits"):
        npz.read_dataset(path, 20, (), ReadOptions(bits="10"))


@pytest.mark.parametrize("channels", [1, 4])
def test_grey_and_transparent_images_are_read_as_files_are(tmp_path, channels):
    pixels = np.repeat(random_images()[..., :1], channels, axis=-1)
    if channels == 4:
        pixels[..., 3] = 0
        pixels[:, 0, 0] = 255
    path = challenge(tmp_path / "a.npz", images=pixels)
    dataset = npz.read_dataset(path, 20, ())
    expected = np.repeat(pixels, 3, axis=-1) if channels == 1 else 255
    np.testing.assert_array_equal(dataset.images, np.broadcast_to(expected, (N, 20, 20, 3)))
    assert dataset.reading.tally.transparent == (N if channels == 4 else 0)
    if channels == 4:
        pixels[3, ..., 3] = 0
        with pytest.raises(UserError, match="images: image 3: all of its pixels are transparent"):
            npz.read_dataset(challenge(path, images=pixels), 20, ())


def test_images_that_are_not_square_fit(tmp_path):
    pixels = random_images()[:, :12]
    path = challenge(tmp_path / "a.npz", images=pixels)
    dataset = npz.read_dataset(path, 20, (), ReadOptions(fit="pad"))
    np.testing.assert_array_equal(dataset.images, images_lib.resize(pixels, 20, "pad"))
    assert any("16 images whose sides differ" in text for text in dataset.reading.details)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("key", ["groups", "classes"])
def test_text_with_numbers_that_are_no_characters_is_damaged(tmp_path, key, order):
    texts = np.array([f"嗜{i}" for i in range(N if key == "groups" else 8)], f"{order}U3")
    assert npz.read_dataset(challenge(tmp_path / "a.npz", **{key: texts}), 20, ())
    texts.view(f"{order}u4")[5] = 0x110000
    with pytest.raises(UserError, match=rf"a\.npz: {key} cannot be read \(its text is damaged\)"):
        npz.read_dataset(challenge(tmp_path / "a.npz", **{key: texts}), 20, ())
