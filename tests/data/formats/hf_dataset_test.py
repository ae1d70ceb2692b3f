import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bloodjax.data import images as images_lib
from bloodjax.data import own_size, sources
from bloodjax.data.formats import hf_dataset
from bloodjax.data.options import ReadOptions
from bloodjax.errors import UserError

from . import hub_server

datasets = pytest.importorskip("datasets", reason="needs the extra hf-datasets")

N = 12
CLASSES = ["basophil", "eosinophil", "monocyte"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test may reach the network, or see the cache of whoever runs it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
    return [images_lib.encode_png(each) for each in pixels]


def rows(pictures, start=0, stop=N, **more):
    """A split; `more` are further columns: values and feature."""
    index = range(start, stop)
    columns = {
        "image": [{"bytes": pictures[i], "path": f"cell_{i}.png"} for i in index],
        "label": [i % 3 for i in index],
        **{name: values for name, (values, _) in more.items()},
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    features |= {name: feature for name, (_, feature) in more.items()}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))


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


@pytest.fixture
def cached(pictures, tmp_path):
    """A dataset of the Hub as the library has prepared it in its cache."""
    made = tmp_path / "made"
    builder = datasets.load_dataset(
        "parquet",
        data_files={
            split: [_parquet(tmp_path / f"{split}.parquet", rows(pictures, *part))]
            for split, part in (("train", (0, 8)), ("test", (8, N)))
        },
        cache_dir=str(made),
    )
    (prepared,) = {
        pathlib.Path(f["filename"]).parent for s in builder.values() for f in s.cache_files
    }
    folder = tmp_path / "cache" / "lab___blood_cells" / "default" / "0.0.0" / COMMIT
    shutil.copytree(prepared, folder)
    return folder


def _parquet(path, split):
    split.to_parquet(str(path))
    return str(path)


def test_a_dataset_of_the_hub_is_read_from_the_cache_without_the_network(cached, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset_builder", None)  # it would reach the Hub
    for spec in ("lab/BloodCells", "lab/blood_cells:default", f"lab/blood_cells@{COMMIT[:8]}"):
        found = sources.load(f"hf-dataset:{spec}", 16)
        assert found.splits == ("train",) * 8 + ("test",) * 4
        assert found.classes == tuple(CLASSES)
        assert found.reading.details[0] == f"revision {COMMIT}, from the cache"


@pytest.mark.parametrize("spec", ["lab/blood_cells:other", "lab/blood_cells@main", "lab/none"])
def test_offline_what_is_not_in_the_cache_is_one_line(cached, spec):
    with pytest.raises(UserError, match=r"the cache .*HF_HUB_OFFLINE is set"):
        sources.load(f"hf-dataset:{spec}", 16)


def test_a_damaged_copy_in_the_cache_is_one_line(cached):
    info = cached / "dataset_info.json"
    content = json.loads(info.read_text())
    content["splits"]["train"]["num_examples"] = 9
    info.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is damaged .*train has 8 rows, expected 9.* remove the"):
        sources.load("hf-dataset:lab/blood_cells", 16)


class Builder:
    """What the library makes of a dataset of the Hub."""

    hash = COMMIT

    def __init__(self, pictures):
        self._pictures = pictures
        self.prepared = False

    def download_and_prepare(self):
        self.prepared = True

    def as_dataset(self):
        assert self.prepared
        return datasets.DatasetDict(train=rows(self._pictures))


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def test_otherwise_the_library_is_asked_for_this_dataset_and_revision(
    pictures, online, monkeypatch
):
    asked = []

    def load(*args, **options):
        asked.append((args, options))
        return Builder(pictures)

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    found = sources.load("hf-dataset:lab/cells@v1.0:large", 16)
    assert len(found) == N
    assert found.reading.details[0] == f"revision {COMMIT}, from the Hub"
    assert asked == [(("lab/cells", "large"), {"revision": "v1.0"})]

    def fail(*args, **options):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    with pytest.raises(UserError, match=r"cannot be loaded .*\(ConnectionError: no route\)"):
        sources.load("hf-dataset:lab/cells", 16)


@pytest.mark.slow
def test_a_dataset_is_downloaded_once_and_then_read_from_the_cache(pictures, tmp_path):
    """In a process of its own: the library reads the address of the Hub when it is imported."""
    for split, part in (("train", (0, 8)), ("test", (8, N))):
        _parquet(tmp_path / f"{split}-00000-of-00001.parquet", rows(pictures, *part))
    with hub_server.serve("lab/blood_cells", tmp_path, COMMIT) as hub:
        variables = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        specs = ["lab/blood_cells", "lab/blood_cells", "lab/blood_cells@main", "lab/none"]
        code = (
            "import sys\n"
            "from bloodjax.data import sources\n"
            "for spec in sys.argv[1:]:\n"
            "    try:\n"
            "        found = sources.load('hf-dataset:' + spec, 16)\n"
            "        print(len(found), *found.classes, found.reading.details[0], flush=True)\n"
            "    except Exception as error:\n"
            "        print(type(error).__name__, error, flush=True)\n"
        )

        def run(*specs):
            done = subprocess.run(
                [sys.executable, "-c", code, *specs],
                env=kept | variables,
                capture_output=True,
                text=True,
                check=True,
            )
            return done.stdout.splitlines()

        first, second, branch, none = run(*specs)
        asked = len(hub.requests)
        assert run(f"lab/blood_cells@{COMMIT[:10]}") == [second]
        assert len(hub.requests) == asked, "the network was asked of what is in the cache"
    expected = f"{N} {' '.join(CLASSES)} revision {COMMIT}"
    assert first == branch == f"{expected}, from the Hub"
    assert second == f"{expected}, from the cache"
    assert none.startswith("UserError hf-dataset:lab/none: cannot be loaded")
    # The Hub is gone, and which commit `main` is only it knows.
    (away,) = run("lab/blood_cells@main")
    assert f"in the cache are @{COMMIT}:default, and the Hub cannot be reached" in away


def test_a_folder_of_the_same_name_is_not_taken_for_it(online, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    os.makedirs("lab/cells")
    with pytest.raises(UserError, match="there is a file or folder lab/cells here"):
        sources.load("hf-dataset:lab/cells", 16)


@pytest.mark.parametrize("spec", ["cells", "a/b/c", "lab/cells:", "../cells", "lab/cells@", ""])
def test_a_spec_of_another_form_is_refused(spec):
    with pytest.raises(UserError, match=r"expected hf-dataset:OWNER/NAME\[@REVISION\]"):
        sources.load(f"hf-dataset:{spec}", 16)


def test_an_image_at_a_url_is_not_fetched(pictures, tmp_path):
    found = rows(pictures)
    table = found.with_format("arrow")[:].to_pydict()
    table["image"][0] = {"bytes": None, "path": "https://example.org/cell.png"}
    remote = datasets.Dataset.from_dict(table, found.features)
    rows_of = hf_dataset._Rows("x", {"": remote}, ("a",), {"path": "image"}, ())
    with pytest.raises(ValueError, match=r"it is at https.* expected its bytes in the dataset"):
        rows_of.archive().read("a")


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'bloodjax\[hf-datasets\]'"):
        sources.load("hf-dataset:lab/cells", 16)


def test_damaged_offsets_are_found_before_they_are_followed(pictures, tmp_path):
    rows(pictures).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    content = arrow.read_bytes()
    offsets = np.array([0, 10, 20, 30], "<i4").tobytes()  # of the names of files
    assert content.count(offsets) == 1
    arrow.write_bytes(content.replace(offsets, np.array([0, 10, 2**30, 30], "<i4").tobytes()))
    with pytest.raises(UserError, match=r"the Arrow files of split train are damaged"):
        sources.load(str(tmp_path / "saved"), 16)
