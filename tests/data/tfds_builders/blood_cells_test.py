import subprocess
import sys

import numpy as np
import pytest

from bloodjax.data import packing, sources
from bloodjax.data.formats import npz
from bloodjax.data.formats.tfds import tfds
from bloodjax.data.tfds_builders.blood_cells import BloodCells
from bloodjax.errors import UserError


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in {"train": 16, "val": 8, "test": 8}.items():
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, 20, 20, 3)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 8
    np.savez(tmp_path / "bloodmnist.npz", **arrays)
    return str(tmp_path / "bloodmnist.npz")


@pytest.fixture
def built(source, tmp_path, monkeypatch):
    folder = tmp_path / "tfds"
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    BloodCells(source=source, data_dir=folder).download_and_prepare()
    return folder


def test_the_built_set_is_the_source_in_another_order(source, built):
    expected, found = sources.load(source, 20), sources.load("tfds:blood_cells:1.0.0", 20)
    assert found.classes == npz.BLOOD_CELLS
    order, other = np.argsort(expected.names), np.argsort(found.names)
    np.testing.assert_array_equal(found.images[other], expected.images[order])
    np.testing.assert_array_equal(found.labels[other], expected.labels[order])
    for field in ("names", "splits", "groups"):
        one, two = (np.array(getattr(d, field)) for d in (expected, found))
        assert one[order].tolist() == two[other].tolist()
    assert sources.fingerprint("tfds:blood_cells").startswith("blake2b:")
    unlabelled = sources.load_images("tfds:blood_cells", 12)
    assert (unlabelled.images.shape, unlabelled.names) == ((32, 12, 12, 3), found.names)


def test_a_built_set_can_be_packed(built, tmp_path):
    packing.pack(packing.load_source("tfds:blood_cells"), tmp_path / "out", as_pixels=False)
    expected, found = (sources.load(s, 20) for s in ("tfds:blood_cells", str(tmp_path / "out")))
    assert (found.names, found.splits) == (expected.names, expected.splits)
    np.testing.assert_array_equal(found.images[:], expected.images[:])


def test_it_needs_no_tensorflow(built):
    code = (
        "import sys; from bloodjax.data import sources; "
        "from bloodjax.data.tfds_builders.blood_cells import BloodCells; "
        "sources.load('tfds:blood_cells', 8).images[:]; print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False"], done.stderr


def test_without_a_source_there_is_nothing_to_build(tmp_path):
    with pytest.raises(UserError, match=r"expected BloodCells\(source=SPEC\)"):
        BloodCells(data_dir=tmp_path).download_and_prepare()


def test_it_can_be_mocked():
    with tfds.testing.mock_data(num_examples=3):
        source = tfds.data_source("blood_cells", split="train")
        assert len(source) == 3
        assert source[0]["image"].shape[2] == 3
        assert 0 <= source[0]["label"] < 8
