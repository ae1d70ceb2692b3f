import io
import os
import random
import zipfile

import numpy as np
import pytest
from PIL import Image

from benchmarks import fuzz, fuzz_worker, layouts, mutations, samples
from bloodjax.errors import UserError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return samples.samples(tmp_path_factory.mktemp("samples"))


@pytest.mark.full
def test_damaged_files_of_each_format_give_a_result_or_one_line():
    found = fuzz.fuzz(120, seed=1)
    assert found["faults"] == []
    assert found["mutations"] == sum(found["outcomes"].values()) == 120
    assert {text.partition(":")[0] for text in found["outcomes"]} == set(fuzz_worker.READERS)


def test_whole_files_are_read(whole, tmp_path):
    for kind, each in whole.items():
        for i, files in enumerate(each):
            fuzz.write(tmp_path / f"{kind}{i}", files)
            found = fuzz_worker.outcome(fuzz_worker.READERS[kind], tmp_path / f"{kind}{i}")
            assert found == ("result", ""), (kind, sorted(files))


@pytest.mark.full
def test_a_seed_gives_the_same_files_again(whole):
    for each in whole.values():
        for files in each:
            one, two, other = (
                [mutations.mutated(files, random.Random(f"{seed}/{i}")) for i in range(5)]
                for seed in (0, 0, 1)
            )
            assert one == two != other


def test_an_image_is_changed_behind_its_checksums():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    readable = set()
    for seed in range(60):
        content = mutations.chunk(file.getvalue(), random.Random(seed))
        try:
            readable.add(Image.open(io.BytesIO(content), formats=["PNG"]).tobytes())
        except Exception:  # A damaged image may raise anything.
            continue
    assert len(readable) > 3


def test_a_pickle_in_a_zip_would_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = mutations.zip_of([(mutations.member("a.npy"), b"")])
    for seed in range(4):
        trapped = mutations.pickle_in_member(content, random.Random(seed))
        inner = zipfile.ZipFile(io.BytesIO(trapped)).read("a.npy")
        if inner.startswith(b"\x93NUMPY"):
            np.load(io.BytesIO(inner), allow_pickle=True)
            break
    assert (tmp_path / mutations.TRAP).is_dir()


def test_rearranged_folders_keep_their_images_and_give_them_again(whole):
    (sample,) = whole["folder"]
    images = sum(map(layouts.is_image, sample.values()))
    seen = set()
    for seed in range(60):
        files, done = layouts.changed(sample, random.Random(seed))
        assert (files, done) == layouts.changed(sample, random.Random(seed))
        assert sum(map(layouts.is_image, files.values())) == images
        members = zipfile.ZipFile(io.BytesIO(files[layouts.ZIP])).namelist()
        assert len(members) == len(files) - 1
        seen.update(done.split(", "))
    assert seen == {change.__name__.strip("_") for change in layouts._CHANGES}


def test_an_image_that_is_lost_in_silence_is_a_fault(whole, tmp_path, monkeypatch):
    (sample,) = whole["folder"]
    fuzz.write(tmp_path / "folder", sample)
    load = fuzz_worker.sources.load
    monkeypatch.setattr(
        fuzz_worker.sources, "load", lambda *arguments: load(*arguments).take(np.arange(1, 16))
    )
    found, text = fuzz_worker.outcome(fuzz_worker.READERS["folder"], tmp_path / "folder")
    assert found == "fault"
    assert "of 16 images 15 were read and 0 left out" in text


@pytest.mark.slow
def test_odd_names_are_taken_as_they_are(tmp_path):
    for i in range(0, len(layouts.NAMES), 12):
        content = "\n".join(layouts.NAMES[i : i + 12]).encode("utf-8", "surrogateescape")
        fuzz.write(tmp_path / str(i), {"names.txt": content})
        found = fuzz_worker.outcome(fuzz_worker.READERS["names"], tmp_path / str(i))
        assert found == ("result", "")


def raises(error):
    def read(folder):
        raise error(folder)

    return read


@pytest.mark.parametrize(
    ("read", "expected", "text"),
    [
        (lambda folder: None, "result", ""),
        (raises(lambda f: UserError(f"{f}: is damaged")), "refused", "is damaged"),
        (raises(lambda f: UserError("is damaged")), "fault", "does not name the file"),
        (raises(ValueError), "fault", "Traceback"),
    ],
)
def test_what_is_a_fault(read, expected, text, tmp_path):
    found = fuzz_worker.outcome(read, tmp_path)
    assert found[0] == expected
    assert text in found[1]


@pytest.mark.parametrize(
    ("event", "arguments", "wrong"),
    [
        ("open", ("a.png", "rb", os.O_RDONLY), False),
        ("open", ("a.png", "wb", 0), True),
        ("open", (b"a.png", None, os.O_WRONLY | os.O_CREAT), True),
        ("open", (os.devnull, "w", 0), False),
        ("pickle.find_class", ("os", "mkdir"), True),
        ("os.system", ("true",), True),
        ("socket.connect", (None, ("example.org", 80)), True),
        ("import", ("json",), False),
    ],
)
def test_what_reading_may_not_do(event, arguments, wrong):
    assert bool(fuzz_worker.fault(event, arguments)) == wrong


@pytest.mark.full
def test_a_worker_that_ends_is_a_fault_and_is_replaced(monkeypatch, tmp_path):
    monkeypatch.setattr(mutations, "mutated", lambda files, rng: (dict(files), "nothing"))
    monkeypatch.setattr(fuzz, "SECONDS", 0.0)
    found = fuzz.fuzz(1, seed=0, keep=tmp_path / "kept")
    assert [fault["what"] for fault in found["faults"]] == [["no answer in 0 s"]]
    assert len([*(tmp_path / "kept" / "0").iterdir()]) > 1
