"""Tests of bloodjax/data/fingerprint.py, and of the fingerprints of sources."""

import os
import shutil
import zipfile

import numpy as np
import pytest

from bloodjax.data import fingerprint, images, packing, sources
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError


def put(root, name, seed=0):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    path.write_bytes(images.encode_png(pixels))


def zip_of(root, path):
    with zipfile.ZipFile(path, "w") as file:
        for each in sorted(root.rglob("*")):
            if each.is_file():
                file.write(each, each.relative_to(root).as_posix())
    return path


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["a/1.png", "a/2.png", "b/3.png", "b/no_suffix"]):
        put(tmp_path / "data", name, i)
    (tmp_path / "data/groups.csv").write_text("name,group\na/1.png,p1\n")
    return tmp_path / "data"


def swap(path, other):
    """Exchanges the contents of two files of one size, whose times stay as they were."""
    times = [(p.stat().st_atime_ns, p.stat().st_mtime_ns) for p in (path, other)]
    first, second = path.read_bytes(), other.read_bytes()
    assert len(first) == len(second)
    path.write_bytes(second)
    other.write_bytes(first)
    for each, time in zip((path, other), times, strict=True):
        os.utime(each, ns=time)


def test_other_images_of_the_same_names_sizes_and_times_are_other_data(folder, tmp_path):
    before = (
        sources.fingerprint(str(folder)),
        sources.fingerprint(str(zip_of(folder, tmp_path / "a.zip"))),
    )
    swap(folder / "a/1.png", folder / "b/3.png")
    assert sources.fingerprint(str(folder)) != before[0]
    assert sources.fingerprint(str(zip_of(folder, tmp_path / "b.zip"))) != before[1]
    swap(folder / "a/1.png", folder / "b/3.png")
    assert sources.fingerprint(str(folder)) == before[0]


def test_an_image_without_a_suffix_and_the_groups_count(folder):
    found = [sources.fingerprint(str(folder))]
    swap(folder / "a/1.png", folder / "b/no_suffix")
    found.append(sources.fingerprint(str(folder)))
    (folder / "groups.csv").write_text("name,group\na/1.png,p2\n")
    found.append(sources.fingerprint(str(folder)))
    assert len(set(found)) == 3


def test_copies_spellings_and_notes_are_the_same_data(folder, tmp_path, monkeypatch):
    before = sources.fingerprint(str(folder))
    shutil.copytree(folder, tmp_path / "elsewhere/moved")
    (tmp_path / "elsewhere/moved/notes.md").write_text("taken in May")
    (tmp_path / "elsewhere/moved/a/Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for spec in ("moved", "moved/", "./moved", "../data", f"{tmp_path}/data/"):
        assert sources.fingerprint(spec) == before
    plain = sources.fingerprint(str(zip_of(folder, tmp_path / "a.zip")))
    assert (
        sources.fingerprint(str(zip_of(tmp_path / "elsewhere/moved", tmp_path / "b.zip"))) == plain
    )


def test_a_name_in_another_unicode_form_is_the_same(tmp_path):
    put(tmp_path / "mac", "a/Zelle\u0308.png")
    put(tmp_path / "linux", "a/Zell\u00eb.png")
    found = {sources.fingerprint(str(tmp_path / name)) for name in ("mac", "linux")}
    assert len(found) == 1


def test_names_that_are_not_utf_8_can_be_hashed(folder):
    before = sources.fingerprint(str(folder))
    os.rename(folder / "a/2.png", os.fsencode(folder) + b"/a/caf\xe9.png")
    other = sources.fingerprint(str(folder))
    assert other != before
    os.rename(os.fsencode(folder) + b"/a/caf\xe9.png", folder / "a/café.png")
    assert sources.fingerprint(str(folder)) == other


def test_a_changed_byte_of_a_shard_is_other_data(tmp_path):
    out = tmp_path / "packed"
    packing.pack(render.render_dataset(16, 32), out, as_pixels=True)
    before = sources.fingerprint(str(out))
    earlier = sources.array_record.earlier_fingerprint(out)
    (shard,) = out.glob("*.array_record-*")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert sources.fingerprint(str(out)) != before
    assert sources.array_record.earlier_fingerprint(out) == earlier
    assert sources.has_fingerprint(str(out), earlier)


def test_fingerprints_of_earlier_versions_are_known(folder, tmp_path):
    zipped = zip_of(folder, tmp_path / "a.zip")
    for path in (folder, zipped):
        earlier = fingerprint.earlier_of_archive(path)
        assert fingerprint.is_earlier(earlier)
        assert sources.has_fingerprint(str(path), earlier)
        assert sources.has_fingerprint(str(path), sources.fingerprint(str(path)))
        assert not sources.has_fingerprint(str(path), "sha256:0")
    put(folder, "a/4.png")
    assert not sources.has_fingerprint(str(folder), fingerprint.earlier_of_archive(zipped))


def test_the_earlier_fingerprint_of_a_folder_is_the_one_that_was_written(tmp_path):
    (tmp_path / "data/a").mkdir(parents=True)
    (tmp_path / "data/a/1.png").write_bytes(b"12345")
    (tmp_path / "data/note.txt").write_bytes(b"1")
    # sha256 of repr([("a/1.png", 5), ("note.txt", 1)])
    expected = "701d50684868fd15ffaf90263cb22338fe7df7f4079f14393f6de958f4f1d158"
    assert fingerprint.earlier_of_archive(tmp_path / "data") == f"sha256:{expected}"


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "b/3.png").unlink()
    (folder / "b/3.png").symlink_to(folder / "missing.png")
    with pytest.raises(UserError, match=r"b/3\.png: cannot be read"):
        sources.fingerprint(str(folder))


def test_hashes_of_images_follow_pixels_and_survive_as_text():
    pixels = render.render_dataset(16, 16).images
    hashes = fingerprint.of_images(np.concatenate([pixels, pixels[:2]]))
    assert len(set(hashes.tolist())) == 16
    assert fingerprint.is_among(hashes, hashes[:2]).nonzero()[0].tolist() == [0, 1, 16, 17]
    np.testing.assert_array_equal(fingerprint.from_text(fingerprint.to_text(hashes)), hashes)
    assert len(fingerprint.to_text(hashes[:12])) == 128
    for damaged in ("AAA", "AAAA", "AAAAAAAAAAA\u00e9"):
        with pytest.raises(ValueError, match="hashes of images"):
            fingerprint.from_text(damaged)


def test_a_zip_may_have_a_member_without_a_name(folder, tmp_path):
    path = zip_of(folder, tmp_path / "data.zip")
    before = fingerprint.of_archive(path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(zipfile.ZipInfo(""), b"x")
        file.writestr(zipfile.ZipInfo("c/"), b"")
    assert fingerprint.of_archive(path) == before
