import io
import json
import os
import socket
import threading
import zipfile

import numpy as np
import PIL.Image
import pytest

from bloodjax.data import images, lazy, packing, sources
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import array_record
from bloodjax.data.formats.tfds import tfds
from bloodjax.data.options import ReadOptions
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError

RNG = np.random.default_rng(0)


def encoded(seed, file_format, height=30, width=26):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def write_folder(root):
    """Images of several formats and sizes, with splits whose order is not that of the paths."""
    names = []
    for split in ("val", "train", "test"):
        for kind in ("b", "10"):
            for i, suffix in enumerate(("png", "jpeg", "tiff", "bmp")):
                name = f"{split}/{kind}/{i}.{suffix}"
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_bytes(encoded(len(names), suffix, 30 + len(names)))
                names.append(name)
    rows = "\n".join(f"{name},patient {i // 3}" for i, name in enumerate(names))
    (root / "groups.csv").write_text(f"name,group\n{rows}\n")
    return root


def challenge(path):
    pixels = RNG.integers(0, 256, (12, 20, 20, 3)).astype(np.uint8)
    labels = np.arange(12) % 3
    np.savez(path, images=pixels, labels=labels, classes=["x", "y", "z"], groups=[*"aabbccddeeff"])
    return path


def medmnist(path):
    arrays = {}
    for split, n in {"train": 9, "val": 4, "test": 5}.items():
        arrays[f"{split}_images"] = RNG.integers(0, 256, (n, 18, 18)).astype(np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 4
    np.savez(path, **arrays)
    return path


@pytest.fixture(params=["folder", "zip", "table", "challenge", "medmnist"])
def spec(request, tmp_path):
    if request.param == "challenge":
        return str(challenge(tmp_path / "cells.npz"))
    if request.param == "medmnist":
        return str(medmnist(tmp_path / "cells.npz"))
    folder = write_folder(tmp_path / "cells")
    if request.param == "folder":
        return str(folder)
    if request.param == "table":
        files = sorted(
            path.relative_to(folder) for path in folder.rglob("*.*") if "group" not in path.name
        )
        rows = [f"{p},{p.parts[1]},{p.parts[0]},{i / 4}\n" for i, p in enumerate(files)]
        (folder / "labels.csv").write_text("path,label,split,weight\n" + "".join(rows))
        return str(folder / "labels.csv")
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as file:
        for path in folder.rglob("*.*"):
            file.write(path, path.relative_to(folder))
    return str(tmp_path / "cells.zip")


def assert_same(one, other):
    np.testing.assert_array_equal(one.images[:], other.images[:])
    np.testing.assert_array_equal(one.labels, other.labels)
    assert one.labels.dtype == other.labels.dtype
    np.testing.assert_array_equal(one.weights, other.weights)
    for field in ("names", "classes", "splits", "groups"):
        assert getattr(one, field) == getattr(other, field), field


def pack(spec, out, size=None, **options):
    packing.pack(packing.load_source(spec, size), out, as_pixels=size is not None, **options)
    return str(out)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("shards", [None, 3])
def test_what_was_packed_is_the_source_at_any_size(spec, tmp_path, shards):
    out = pack(spec, tmp_path / "out", shards=shards)
    for size in (18, 20, 33):
        assert_same(sources.load(out, size), sources.load(spec, size))
    assert isinstance(sources.load(out, 18).images, lazy.LazyImages)


def test_pixels_are_the_source_at_their_size(spec, tmp_path):
    out = pack(spec, tmp_path / "out", 17)
    assert_same(sources.load(out, 17), sources.load(spec, 17))
    np.testing.assert_array_equal(
        sources.load(out, 23).images[2], images.resize(sources.load(spec, 17).images, 23)[2]
    )


def test_images_of_shards_are_read_without_labels_of_each_class(tmp_path):
    dataset = packing.load_source("synthetic:24", 32, seed=5)
    few = dataset.take(np.flatnonzero(dataset.labels < 2))
    packing.pack(few, tmp_path / "out", as_pixels=True)
    with pytest.raises(UserError, match="no image of"):
        sources.load(str(tmp_path / "out"), 32)
    found = sources.load_images(str(tmp_path / "out"), 32)
    np.testing.assert_array_equal(found.images[:], few.images[:])


def test_rendered_cells(tmp_path):
    dataset = packing.load_source("synthetic:24", 32, seed=5)
    packing.pack(dataset, tmp_path / "out", as_pixels=True)
    assert_same(sources.load(str(tmp_path / "out"), 32), render.render_dataset(24, 32, seed=5))
    with pytest.raises(UserError, match="synthetic:24: synthetic images have no native size"):
        packing.load_source("synthetic:24")


def test_a_file_whose_name_begins_with_synthetic_has_its_own_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    challenge("synthetic_cells.npz")
    assert packing.load_source("synthetic_cells.npz").images.shape == (12, 20, 20, 3)


def test_files_are_converted_in_threads(tmp_path, monkeypatch):
    threads, convert = set(), images.as_png_or_jpeg

    def recorded(data, bits):
        threads.add(threading.current_thread())
        return convert(data, bits)

    dataset = packing.load_source(str(write_folder(tmp_path / "cells")))
    expected = [convert(data) for data in dataset.images.read_files(range(len(dataset)))]
    monkeypatch.setattr(images, "as_png_or_jpeg", recorded)
    assert list(packing.encode(dataset, as_pixels=False)) == expected
    assert threads
    assert threading.main_thread() not in threads


def test_packed_again_it_is_the_same(spec, tmp_path):
    first = pack(spec, tmp_path / "first", shards=2)
    again = pack(first, tmp_path / "again", shards=2)
    assert content(tmp_path / "first") == content(tmp_path / "again")
    as_pixels = pack(first, tmp_path / "pixels", 17)
    assert_same(sources.load(pack(as_pixels, tmp_path / "png"), 17), sources.load(again, 17))


def test_the_same_source_gives_the_same_bytes_and_fingerprint(spec, tmp_path):
    one, other = (pack(spec, tmp_path / name, 16, shards=2) for name in "ab")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert sources.fingerprint(one) == sources.fingerprint(other)


def test_files_are_kept_as_they_are_or_as_png(tmp_path):
    folder = write_folder(tmp_path / "cells")
    dataset = sources.load(pack(str(folder), tmp_path / "out"), 16)
    for name, file in zip(
        dataset.names, dataset.images.read_files(range(len(dataset))), strict=True
    ):
        original = (folder / name).read_bytes()
        if name.endswith((".png", ".jpeg")):
            assert file == original
        else:
            assert file.startswith(b"\x89PNG")
            np.testing.assert_array_equal(images.decode(file, 19), images.decode(original, 19))


def test_shards_share_each_split_out(tmp_path):
    out = tmp_path / "out"
    pack(str(medmnist(tmp_path / "cells.npz")), out, shards=4)
    counts = [s.records for s in array_record._read_index(out, 4).shards]
    assert sum(counts) == 18
    found = sorted(p.name for p in out.glob("*array_record*"))
    assert len(found) == len(counts) == 12
    assert found[0] == "cells-test.array_record-00000-of-00004"
    assert max(counts) - min(counts) <= 2


def test_tensorflow_datasets_reads_it(tmp_path):
    spec = str(write_folder(tmp_path / "cells"))
    pack(spec, tmp_path / "out")
    dataset = sources.load(spec, 16)
    builder = tfds.builder_from_directory(tmp_path / "out")
    assert sorted(builder.info.splits) == ["test", "train", "validation"]
    example = builder.as_data_source(split="validation")[0]
    i = dataset.splits.index("val")
    assert example["name"].decode() == dataset.names[i]
    assert example["group"].decode() == dataset.groups[i]
    assert builder.info.features["label"].int2str(example["label"]) == "10"
    assert example["image"].shape == (34, 26, 3)


def test_few_images_are_in_memory_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "AT_ONCE", 5)
    dataset = packing.load_source(str(write_folder(tmp_path / "cells")))
    assert isinstance(dataset.images, lazy.LazyImages)
    asked, original = [], dataset.images._read_files

    def read(places):
        asked.append(len(places))
        return original(places)

    dataset.images._read_files = read
    done = []
    packing.pack(dataset, tmp_path / "out", as_pixels=False, progress=done.append)
    assert max(asked) == 5
    assert done == [5, 10, 15, 20, 24]


def test_nothing_else_is_overwritten(tmp_path):
    spec = str(challenge(tmp_path / "cells.npz"))
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    (out / array_record.UNFINISHED).touch()
    (out / "thesis.md").write_text("mine")
    with pytest.raises(UserError, match=r"out: contains \S+, expected a new or an empty folder"):
        pack(spec, out)
    assert (out / "thesis.md").read_text() == (out / "thesis.txt").read_text() == "mine"
    done = tmp_path / "done"
    pack(spec, done)
    before = content(done)
    with pytest.raises(UserError, match="expected a new or an empty folder"):
        pack(spec, done)
    assert content(done) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file: .*, expected a folder to write to"):
        pack(spec, tmp_path / "file")


@pytest.mark.parametrize("broken_at", ["first", "shards", "described"])
def test_what_was_not_finished_is_no_set_and_can_be_done_again(tmp_path, monkeypatch, broken_at):
    spec, out = str(challenge(tmp_path / "cells.npz")), tmp_path / "out"
    whole = content(tmp_path / "whole") if pack(spec, tmp_path / "whole", shards=3) else None

    def killed(*_, **__):
        raise KeyboardInterrupt

    where = {
        "first": (packing, "encode"),
        "shards": (packing.tfds, "write_metadata"),
        "described": (packing.array_record, "write_index"),
    }
    with monkeypatch.context() as patched:
        patched.setattr(*where[broken_at], killed)
        with pytest.raises(KeyboardInterrupt):
            pack(spec, out, shards=2)
    for read in (lambda: sources.load(str(out), 20), lambda: sources.fingerprint(str(out))):
        with pytest.raises(UserError, match="out: packing was interrupted; run the same"):
            read()
    pack(spec, out, shards=3)
    assert content(out) == whole


def test_a_bad_image_is_named_or_left_out(tmp_path):
    folder = write_folder(tmp_path / "cells")
    (folder / "val/b/0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"val/b/0.png is not a readable image"):
        packing.load_source(str(folder))
    assert len(packing.load_source(str(folder), options=ReadOptions("skip"))) == 23


def test_a_class_name_that_cannot_be_kept_is_an_error(tmp_path):
    path = tmp_path / "cells.npz"
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    np.savez(path, images=pixels, labels=[0, 1], classes=["x", "two\nlines"])
    with pytest.raises(UserError, match=r"cannot store the class 'two\\nlines'"):
        pack(str(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_reaches_the_network(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    out = pack(str(challenge(tmp_path / "cells.npz")), tmp_path / "out")
    os.rename(tmp_path / "out", tmp_path / "moved")
    assert len(sources.load(str(tmp_path / "moved"), 20)) == 12
    assert out


def mixed(root):
    """Files that reading changes: 12 bits, turned, transparent, of several frames, elongated."""
    cell = np.random.default_rng(0).integers(0, 256, (20, 20, 4)).astype(np.uint8)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    pictures = {
        "a/deep.png": (cell[..., 0].astype(np.uint16) * 16, "PNG", {}),
        "a/deep.tif": (cell[..., 1].astype(np.uint16) * 8, "TIFF", {}),
        "a/turned.jpg": (cell[..., :3], "JPEG", {"exif": exif}),
        "b/clear.png": (cell, "PNG", {}),
        "b/clear.tif": (cell[::-1].copy(), "TIFF", {}),
        "b/wide.png": (cell[:12, :, :3].copy(), "PNG", {}),
    }
    for name, (pixels, file_format, settings) in pictures.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(pixels).save(root / name, file_format, **settings)
    return str(root)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_packed_images_are_those_that_a_run_reads_from_the_source(tmp_path, fit):
    spec, options = mixed(tmp_path / "cells"), ReadOptions(fit=fit)
    out = pack(spec, tmp_path / "out")
    for size in (20, 33):
        expected = sources.load(spec, size, options=options)
        found = sources.load(out, size, options=options)
        assert_same(found, expected)
        assert found.reading.tally == expected.reading.tally
        assert set(expected.reading.details) <= set(found.reading.details)
    dataset = packing.load_source(spec, 16, options=options)
    packing.pack(dataset, tmp_path / "pixels", as_pixels=True, fit=fit)
    found = sources.load(str(tmp_path / "pixels"), 16, options=options)
    assert_same(found, sources.load(spec, 16, options=options))


def test_shards_state_the_scale_and_the_fit_that_they_were_packed_with(tmp_path):
    spec = mixed(tmp_path / "cells")
    out = pack(spec, tmp_path / "out", 16, fit="crop")
    assert sources.load(out, 16, options=ReadOptions(bits="12")).reading.tally.scale == "12"
    with pytest.raises(UserError, match=r"scale 12, expected it to be 16; pack .*data.bits=12"):
        sources.load(out, 16, options=ReadOptions(bits="16"))
    with pytest.raises(UserError, match=r"packed with --fit=crop, expected pad; .*data.fit=crop"):
        sources.load(out, 16, options=ReadOptions(fit="pad"))


@pytest.mark.parametrize(("options", "factor"), [(ReadOptions(), 16), (ReadOptions(bits="16"), 1)])
def test_16_bit_files_in_shards_of_tensorflow_datasets(tmp_path, monkeypatch, options, factor):
    greys = np.random.default_rng(0).integers(0, 256, (6, 20, 20)).astype(np.uint8)
    greys[0, 0] = 255
    files = [io.BytesIO() for _ in greys]
    for grey, file in zip(greys, files, strict=True):
        PIL.Image.fromarray(grey.astype(np.uint16) * 16).save(file, "PNG")
    monkeypatch.setattr(packing, "encode", lambda *_: (file.getvalue() for file in files))
    blank = ("",) * 6
    rgb = np.repeat(greys[..., None], 3, axis=-1)
    dataset = Dataset(rgb, np.arange(6, dtype=np.int32) % 2, (*"abcdef",), ("x", "y"), blank, blank)
    packing.pack(dataset, tmp_path / "out", as_pixels=False)
    (tmp_path / "out/index.json").unlink()
    found = sources.load(str(tmp_path / "out"), 20, options=options)
    np.testing.assert_array_equal(found.images[:], rgb // (16 // factor))
    assert found.reading.tally.deep == 6


def test_16_bit_files_that_an_earlier_version_packed_need_a_scale(tmp_path, monkeypatch):
    spec = mixed(tmp_path / "cells")
    monkeypatch.setattr(images, "as_png_or_jpeg", lambda data, bits: data)
    out = pack(spec, tmp_path / "out")
    index = tmp_path / "out/index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({k: v for k, v in content.items() if k not in ("tally", "fit")}))
    with pytest.raises(UserError, match="more than 8 bits, and their scale is unknown"):
        sources.load(out, 20).images[:]
    found = sources.load(out, 20, options=ReadOptions(bits="16")).images[0]
    assert found.max() <= 15  # as earlier versions read them
