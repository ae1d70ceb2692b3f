import unicodedata

import pytest

from bloodjax.data import spec
from bloodjax.data.spec import Kind, Source
from bloodjax.errors import UserError

FILES = {
    "cells.npz": Kind.NPZ,
    "CELLS.ZIP": Kind.FOLDER,
    "labels.tsv": Kind.TABLE,
    "labels.xls": Kind.TABLE,
    "plain/a/1.png": Kind.FOLDER,
    "folder.csv/a/1.png": Kind.FOLDER,
    "saved/dataset_dict.json": Kind.HF_DATASET,
    "packed/cells-train.array_record-00000-of-00001": Kind.SHARDS,
}


@pytest.mark.parametrize(("name", "kind"), FILES.items())
def test_a_file_or_folder_has_a_kind(tmp_path, name, kind):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    top = str(tmp_path / name.partition("/")[0])
    assert spec.resolve(top) == spec.resolve(top, may_be_image=True) == Source(kind, top)
    assert spec.is_table(top) == (kind == Kind.TABLE)


def test_any_other_file_is_an_image_where_one_may_be(tmp_path):
    path = tmp_path / "cell.png"
    path.write_bytes(b"")
    assert spec.resolve(str(path), may_be_image=True) == Source(Kind.IMAGE, str(path))
    with pytest.raises(UserError, match=r"cell\.png: neither npz nor zip, expected FILE\.npz"):
        spec.resolve(str(path))


def test_what_is_not_on_this_machine_is_named_by_its_spec():
    hub = "hf-dataset:owner/cells.csv"
    assert spec.resolve(hub) == Source(Kind.HF_DATASET, hub)
    assert not spec.is_table(hub)
    assert spec.resolve("gs://bucket/labels.CSV") == Source(Kind.TABLE, "gs://bucket/labels.CSV")
    assert spec.resolve("synthetic:9") == Source(Kind.SYNTHETIC, count=9)
    assert spec.resolve("synthetic").count == spec.DEFAULT_SYNTHETIC


def test_a_name_or_number_that_is_too_long_is_one_line():
    with pytest.raises(UserError, match=r"x: cannot be read \(File name too long\)$"):
        spec.resolve("x" * 300)
    with pytest.raises(UserError, match=r"images, expected synthetic:N with N of 1 or more and"):
        spec.resolve("synthetic:" + "9" * 5000)


def test_a_file_may_be_called_synthetic(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert spec.synthetic_count("synthetic:9") == 9
    (tmp_path / "synthetic:9").mkdir()
    assert spec.synthetic_count("synthetic:9") is None
    assert spec.resolve("synthetic:9") == Source(Kind.FOLDER, "synthetic:9")


@pytest.mark.parametrize("may_be_image", [False, True])
def test_a_name_in_another_unicode_form_is_found(tmp_path, may_be_image):
    (tmp_path / "zélules").mkdir()
    other = tmp_path / unicodedata.normalize("NFD", "zélules")
    found = spec.resolve(str(other), may_be_image=may_be_image)
    assert found.path.is_dir()
    with pytest.raises(UserError, match=r"Zélules: no such file or folder; there is .*zélules$"):
        spec.resolve(str(tmp_path / "Zélules"), may_be_image=may_be_image)


def test_results_are_not_written_among_images(tmp_path):
    (tmp_path / "cells/test/a").mkdir(parents=True)
    cells, out = str(tmp_path / "cells"), tmp_path / "cells/out"
    for folder in (tmp_path / "cells", tmp_path / "cells/test"):
        with pytest.raises(UserError, match=r"--out=.*: is read for images, expected a new folder"):
            spec.check_out(folder, [cells])
    spec.check_out(out, [cells])
    out.mkdir()
    (out / "audit.json").write_text("{}")
    spec.check_out(out, [cells, "synthetic:10"])
    spec.check_out(tmp_path, [cells])
