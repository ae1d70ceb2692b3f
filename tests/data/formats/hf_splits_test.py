import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bloodjax.data import sources
from bloodjax.errors import UserError

from . import hub_server
from .hf_files import CLASSES, N, datasets, rows

COMMIT = "0123456789abcdef0123456789abcdef01234567"
pytestmark = pytest.mark.usefixtures("offline")


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
