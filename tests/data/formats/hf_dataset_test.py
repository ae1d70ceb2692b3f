import numpy as np
import pytest

from bloodjax.data import images as images_lib
from bloodjax.data import own_size, sources
from bloodjax.data.formats import hf_dataset
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError

from .hf_files import CLASSES, N, datasets, rows

pytestmark = pytest.mark.usefixtures("offline")


def test_a_saved_dataset_has_the_splits_and_classes_of_its_own(pictures, tmp_path):
    folder = tmp_path / "saved"
    splits = {"train": rows(pictures, 0, 6), "validation": rows(pictures, 6, 9)}
    datasets.DatasetDict({**splits, "test": rows(pictures, 9)}).save_to_disk(folder)
    found = sources.load(str(folder), 16)
    assert found.classes == tuple(CLASSES)
    assert found.labels.tolist() == [i % 3 for i in range(N)]
    assert found.splits == ("train",) * 6 + ("val",) * 3 + ("test",) * 3
    assert found.names[:2] == ("train/cell_0.png", "train/cell_1.png")
    expected = [images_lib.decode(png, 16) for png in pictures]
    np.testing.assert_array_equal(found.images, expected)
    lazy = sources.load(str(folder), 16, lazy=True)
    np.testing.assert_array_equal(lazy.images[[7, 0]], [expected[7], expected[0]])
    annotations = hf_dataset.read(str(folder))
    assert (annotations.splits, annotations.classes) == (found.splits, found.classes)


def test_two_classes_of_one_name_are_one_line(pictures, tmp_path):
    more = {"label": ([i % 3 for i in range(N)], datasets.ClassLabel(names=["a", "a ", "b"]))}
    rows(pictures, **more).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="label has two classes called a"):
        sources.load(str(tmp_path / "saved"), 16)


def test_one_split_and_images_without_labels(pictures, tmp_path):
    folder = str(tmp_path / "saved")
    rows(pictures).save_to_disk(folder)
    found = sources.load_images(folder, 16)
    assert found.names[0] == "cell_0.png"
    assert found.classes == ()
    whole = own_size.reader(folder, found)(3)
    np.testing.assert_array_equal(whole, images_lib.decode(pictures[3], 16))


def test_groups_weights_and_hidden_labels(pictures, tmp_path):
    more = {
        "patient_id": ([f"p{i // 2}" for i in range(N)], datasets.Value("string")),
        "weight": ([0.5 + i for i in range(N)], datasets.Value("float32")),
    }
    found = rows(pictures, **more)
    hidden = found.map(lambda row, i: {"label": -1 if i < 4 else row["label"]}, with_indices=True)
    hidden.save_to_disk(tmp_path / "saved")
    read = sources.load(str(tmp_path / "saved"), 16)
    assert read.groups == tuple(f"p{i // 2}" for i in range(4, N))
    assert read.weights.tolist() == [0.5 + i for i in range(4, N)]
    assert read.reading.left_out == (("without a label", "", 4),)
    unlabelled = sources.load_images(str(tmp_path / "saved"), 16)
    assert unlabelled.groups == tuple(f"p{i // 2}" for i in range(N))


@pytest.mark.parametrize(("hidden", "kind"), [(-1, "int64"), (None, "int64"), (np.nan, "float32")])
def test_rows_of_plain_numbers_may_be_without_a_label(pictures, tmp_path, hidden, kind):
    labels = [hidden if i < 4 else i % 3 for i in range(N)]
    plain = rows(pictures, y=(labels, datasets.Value(kind))).remove_columns("label")
    plain.save_to_disk(tmp_path / "saved")
    read = sources.load(str(tmp_path / "saved"), 16)
    assert read.labels.tolist() == [i % 3 for i in range(4, N)]
    assert read.reading.left_out == (("without a label", "", 4),)
    plain.select(range(4)).save_to_disk(tmp_path / "none")
    with pytest.raises(UserError, match="no row has a label in y, expected labels"):
        sources.load(str(tmp_path / "none"), 16)


def test_the_fingerprint_follows_the_images_and_labels(pictures, tmp_path):
    for name, order in (("a", pictures), ("b", pictures), ("c", pictures[::-1])):
        rows(order).save_to_disk(tmp_path / name)
    found = [sources.fingerprint(str(tmp_path / name)) for name in "abc"]
    assert found[0] == found[1] != found[2]
    assert sources.has_fingerprint(str(tmp_path / "b"), found[0])


def test_images_to_classify_need_none_of_the_run_s_other_columns(pictures, tmp_path):
    folder = str(tmp_path / "saved")
    rows(pictures).remove_columns("label").save_to_disk(folder)
    options = ReadOptions(columns="label=dx,group=patient,weight=w")
    assert len(sources.load_images(folder, 16, options=options)) == N
    with pytest.raises(UserError, match="has no feature dx"):
        sources.load(folder, 16, options=options)
    with pytest.raises(UserError, match="has no feature photo"):
        sources.load_images(folder, 16, options=ReadOptions(columns="path=photo"))


def test_texts_are_labels_if_their_feature_is_named_so(pictures, tmp_path):
    texts = ([CLASSES[i % 3] for i in range(N)], datasets.Value("string"))
    found = rows(pictures, dx=texts).remove_columns("label")
    found.save_to_disk(tmp_path / "saved")
    read = sources.load(str(tmp_path / "saved"), 16)
    assert [read.classes[i] for i in read.labels] == texts[0]


AMBIGUOUS = {
    "images": ({"mask": "image"}, "one feature of the type Image, found image, mask", "path"),
    "labels": ({"stage": "label"}, "of the type ClassLabel, found label, stage", "label"),
}


@pytest.mark.parametrize(("more", "message", "kind"), AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_ambiguous_features_are_named_by_the_user(pictures, tmp_path, more, message, kind):
    ((name, like),) = more.items()
    plain = rows(pictures)
    values = plain.with_format("arrow")[:].column(like).to_pylist()
    rows(pictures, **{name: (values, plain.features[like])}).save_to_disk(tmp_path / "saved")
    spec = str(tmp_path / "saved")
    with pytest.raises(UserError, match=rf"{message}; name it with config.data.columns={kind}="):
        sources.load(spec, 16)
    options = ReadOptions(columns=f"{kind}={name}")
    assert len(sources.load(spec, 16, options=options)) == N
    with pytest.raises(UserError, match="has no feature no"):
        sources.load(spec, 16, options=ReadOptions(columns=f"{kind}=no"))


def test_without_images_or_labels_one_line_says_so(pictures, tmp_path):
    rows(pictures).remove_columns("label").save_to_disk(tmp_path / "a")
    with pytest.raises(UserError, match="type ClassLabel, found none among image"):
        sources.load(str(tmp_path / "a"), 16)
    rows(pictures).remove_columns("image").save_to_disk(tmp_path / "b")
    with pytest.raises(UserError, match="type Image, found none among label"):
        sources.load(str(tmp_path / "b"), 16)


def test_a_damaged_folder_or_image_is_one_line(pictures, tmp_path):
    rows([b"no image", *pictures[1:]]).save_to_disk(tmp_path / "a")
    with pytest.raises(UserError, match=r"cell_0.png is not a readable image"):
        sources.load(str(tmp_path / "a"), 16)
    skipped = sources.load(str(tmp_path / "a"), 16, options=ReadOptions(bad_images="skip"))
    assert len(skipped) == N - 1
    (arrow,) = (tmp_path / "a").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as a dataset that save_to_disk has"):
        sources.load(str(tmp_path / "a"), 16)


def test_an_image_at_a_url_is_not_fetched(pictures, tmp_path):
    found = rows(pictures)
    table = found.with_format("arrow")[:].to_pydict()
    table["image"][0] = {"bytes": None, "path": "https://example.org/cell.png"}
    remote = datasets.Dataset.from_dict(table, found.features)
    rows_of = hf_dataset._Rows("x", {"": remote}, ("a",), {"path": "image"}, ())
    with pytest.raises(ValueError, match=r"it is at https.* expected its bytes in the dataset"):
        rows_of.archive().read("a")
