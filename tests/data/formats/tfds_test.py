import json

import numpy as np
import pytest

from bloodjax.data.formats import tfds
from bloodjax.data.formats.records import Reader, Shard, Writer
from bloodjax.errors import UserError

CLASSES = ("lymphocyte", "smudge cell")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A set of pixels: three images to train on, two to test on."""
    splits = {}
    for split, numbers in {"train": (0, 1, 2), "test": (3, 4)}.items():
        path = tmp_path / tfds.shard_name("cells", split, 0, 1)
        writer = Writer(path)
        for i in numbers:
            writer.write(tfds.encode_example(PIXELS[i].tobytes(), i % 2, f"ü{i}", "patient"))
        writer.close()
        splits[split] = [Shard(path, len(numbers))]
    tfds.write_metadata(tmp_path, "cells", tfds.features(CLASSES, 8), splits)
    return tmp_path


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_what_is_described_is_read(folder):
    schema = tfds.read_schema(folder)
    assert (schema.classes, schema.size, schema.texts) == (CLASSES, 8, ("name", "group"))
    assert [sum(s.records for s in of) for of in schema.splits.values()] == [3, 2]
    (shard,) = schema.splits["test"]
    record = Reader([shard]).read([1])[0]
    image, label, texts = tfds.parse_example(record, schema)
    assert (label, texts) == (0, {"name": "ü4", "group": "patient"})
    np.testing.assert_array_equal(tfds.decode_pixels(image, schema), PIXELS[4])


def test_tensorflow_datasets_reads_it_too(folder):
    source = tfds.tfds.builder_from_directory(folder).as_data_source(split="train")
    assert len(source) == 3
    np.testing.assert_array_equal(source[1]["image"], PIXELS[1])
    assert (source[1]["label"], source[1]["name"].decode()) == (1, "ü1")


def test_a_record_of_another_kind_is_an_error(folder):
    schema = tfds.read_schema(folder)
    for record in (b"", b"\xff" * 9, tfds.tfds.__name__.encode()):
        with pytest.raises(ValueError, match="image or label is missing or damaged"):
            tfds.parse_example(record, schema)
    with pytest.raises(ValueError, match=r"image has 3 bytes, expected 8\^2 \* 3"):
        tfds.parse_example(tfds.encode_example(b"abc", 0, "", ""), schema)


@pytest.mark.parametrize("damage", ["", "{}", "[", '{"splits": 3}', "null", '{"name": "x"}'])
@pytest.mark.parametrize("file", [tfds.INFO, "features.json"])
def test_a_damaged_description_is_one_line(folder, file, damage):
    (folder / file).write_text(damage)
    with pytest.raises(
        UserError, match="cannot be read as a dataset of tensorflow_datasets"
    ) as found:
        tfds.read_schema(folder)
    assert str(found.value).startswith(f"{folder}: ")


@pytest.mark.parametrize("file", [tfds.INFO, "features.json"])
@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name"])
def test_a_description_names_no_code_to_run(folder, file, key, monkeypatch):
    (folder / "evil.py").write_text("raise SystemExit('the code in the data was run')")
    monkeypatch.syspath_prepend(str(folder))
    evil = {key: "evil.Feature", "text": {}}
    if file == "features.json":
        edit(folder / file, lambda c: c["featuresDict"]["features"].update(extra=evil))
    else:
        edit(folder / file, lambda c: c.update(features=evil))
    with pytest.raises(UserError, match="features that are not tensorflow_datasets' own"):
        tfds.read_schema(folder)


def test_images_and_labels_must_be_clear(folder):
    def doubled(content):
        features = content["featuresDict"]["features"]
        features["second"] = features["image"]

    edit(folder / "features.json", doubled)
    with pytest.raises(
        UserError, match="group, image, label, name, second; expected exactly one image"
    ):
        tfds.read_schema(folder)


def test_other_formats_are_an_error(folder):
    edit(folder / tfds.INFO, lambda content: content.update(fileFormat="tfrecord"))
    with pytest.raises(
        UserError, match="its records have the format tfrecord, expected array_record"
    ):
        tfds.read_schema(folder)


def test_locate_takes_the_newest_version(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for version in ("1.0.0", "10.0.0", "9.1.0"):
        (tmp_path / "cells" / version).mkdir(parents=True)
        (tmp_path / "cells" / version / tfds.INFO).touch()
    (tmp_path / "cells/11.0.0").mkdir()  # without a description: not a set
    assert tfds.locate("tfds:cells") == tmp_path / "cells/10.0.0"
    assert tfds.locate("tfds:cells:9.1.0") == tmp_path / "cells/9.1.0"
    with pytest.raises(
        UserError, match=r"only the versions 1.0.0, 10.0.0, 9.1.0 are in .*build it"
    ):
        tfds.locate("tfds:cells:2.0.0")
    with pytest.raises(
        UserError, match="bloodjax does not download it: build it with tensorflow_datasets"
    ):
        tfds.locate("tfds:mnist")


@pytest.mark.parametrize("spec", ["tfds:", "tfds:../x", "tfds:a/../b", "tfds:/etc", "tfds:a:1"])
def test_a_name_stays_in_the_data_folder(spec):
    with pytest.raises(UserError, match=r"expected tfds:NAME\[:VERSION\]"):
        tfds.locate(spec)


def test_split_names():
    found = [tfds.split_name(split) for split in ("", "train", "val", "test", "day 2")]
    assert found == ["train", "train", "validation", "test", "day_2"]
