import io
import os
import struct
import tracemalloc
import zipfile
import zlib

import pytest

from bloodjax.data.formats import archive
from bloodjax.data.reading import LeftOut
from bloodjax.errors import UserError

FILES = {"b/2.png": b"two", "b/10.png": b"ten", "a/1.png": b"one", "notes.txt": b"text"}
JUNK = ["__MACOSX/a/._1.png", ".DS_Store", "a/.hidden/1.png", "b/Thumbs.db", "a/desktop.ini"]


def write_zip(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return path


def write_folder(path, files):
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_open_archive_lists_and_reads_files_but_no_junk(tmp_path, write):
    path = write(tmp_path / "cells", FILES | dict.fromkeys(JUNK, b"junk"))
    with archive.open_archive(path) as opened:
        assert opened.files == ("a/1.png", "b/10.png", "b/2.png", "notes.txt")
        assert opened.folders == {"a", "b"}
        assert {name: opened.read(name) for name in opened.files} == FILES


def test_open_archive_lists_empty_folders(tmp_path):
    (tmp_path / "cells/train/empty").mkdir(parents=True)
    with archive.open_archive(tmp_path / "cells") as opened:
        assert opened.folders == {"train", "train/empty"}
    path = write_zip(tmp_path / "cells.zip", {"train/empty/": b""})
    with archive.open_archive(path) as opened:
        assert (opened.files, opened.folders) == ((), {"train", "train/empty"})


@pytest.mark.parametrize("name", ["a\\1.png", "./a/1.png", "a//1.png"])
def test_zip_paths_are_normalised(tmp_path, name):
    with archive.open_archive(write_zip(tmp_path / "cells.zip", {name: b"one"})) as opened:
        assert (opened.files, opened.folders) == (("a/1.png",), {"a"})
        assert opened.read("a/1.png") == b"one"


def test_a_folder_that_links_to_itself_comes_to_an_end(tmp_path):
    write_folder(tmp_path / "cells", {"a/1.png": b"one"})
    (tmp_path / "cells/a/loop").symlink_to(tmp_path / "cells")
    with archive.open_archive(tmp_path / "cells") as opened:
        assert opened.files == ("a/1.png",)
    assert opened.left_out == (LeftOut("a link to a folder above it", "", 1),)


def test_files_at_any_depth_are_listed(tmp_path):
    deep = "/".join("abcdefghijklmnop") + "/1.png"
    with archive.open_archive(write_folder(tmp_path / "cells", {deep: b"one"})) as opened:
        assert opened.files == (deep,)
        assert opened.read(deep) == b"one"


SYSTEM = [
    *(".DS_Store", "a/._1.png", "a/ehthumbs.db", "a/Thumbs.db:encryptable"),
    *("a/1.png:Zone.Identifier", "a/1.pngZone.Identifier", "a/1.png:com.apple.quarantine"),
    *("a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "@eaDir/x@SynoEAStream", "b/y@SynoResource"),
    *("$RECYCLE.BIN/desktop.ini", "System Volume Information/IndexerVolumeGuid"),
    *(
        "a/~$notes.docx",
        "#recycle/1.png",
        "lost+found/#1",
        "__pycache__/x.pyc",
        "__MACOSX/a/._1.png",
    ),
]


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_what_systems_leave_is_left_out_and_counted(tmp_path, write):
    path = write(tmp_path / "cells", FILES | dict.fromkeys(SYSTEM, b"junk"))
    with archive.open_archive(path) as opened:
        assert opened.files == tuple(sorted(FILES))
        assert opened.folders == {"a", "b"}
    assert opened.left_out == (LeftOut(archive.HIDDEN, "", len(SYSTEM)),)


OUTPUTS = {
    "audit": ["audit.json", "index.html"],
    "run": ["config.json", "splits.json", "lock", "audit/index.html", "checkpoints/1/x/y"],
    "begun": ["lock"],
    "stopped": ["lock", "audit/audit.json", "audit/index.html"],
    "e/test": ["metrics.json", "predictions.csv"],
    "packed": ["dataset_info.json", "cells-train.array_record-00000-of-00001"],
}


@pytest.mark.parametrize("write", [write_zip, write_folder])
def test_what_this_library_wrote_is_left_out_and_counted(tmp_path, write):
    written = [f"{folder}/{name}" for folder, names in OUTPUTS.items() for name in names]
    path = write(tmp_path / "cells", FILES | dict.fromkeys(written, b"text"))
    with archive.open_archive(path) as opened:
        assert opened.files == tuple(sorted(FILES))
    assert opened.left_out == (LeftOut(archive.WRITTEN, "", len(OUTPUTS)),)


def test_the_source_may_be_a_workdir(tmp_path):
    (tmp_path / "cells/checkpoints").mkdir(parents=True)
    files = {"a/1.png": b"one", "lock": b"", "tensorboard/1/x": b"", "audit/audit.json": b""}
    with archive.open_archive(write_folder(tmp_path / "cells", files)) as opened:
        assert (opened.files, opened.folders) == (("a/1.png", "lock"), {"a"})
    assert opened.left_out == (LeftOut(archive.WRITTEN, "", 3),)


def test_an_output_that_is_named_itself_is_read(tmp_path):
    write_folder(tmp_path / "run", {"config.json": b"{}", "splits.json": b"{}", "a/1.png": b"one"})
    with archive.open_archive(tmp_path / "run") as opened:
        assert "a/1.png" in opened.files


def test_folder_names_that_are_not_utf8_are_text(tmp_path):
    odd = os.fsencode(tmp_path / "cells") + b"/caf\xe9"
    os.makedirs(odd)
    with open(odd + b"/\xff.png", "wb") as file:
        file.write(b"one")
    with archive.open_archive(tmp_path / "cells") as opened:
        assert opened.files == ("café/ÿ.png",)
        assert opened.read("café/ÿ.png") == b"one"
    assert opened.details == ("names that are not UTF-8 read as Windows-1252: café and 1 more",)


def test_two_names_that_are_the_same_text_are_two_files(tmp_path):
    folder = os.fsencode(write_folder(tmp_path / "cells", {"café/é.png": b"one"}))
    os.makedirs(folder + b"/caf\xe9")
    with open(folder + b"/caf\xe9/\xe9.png", "wb") as file:
        file.write(b"two")
    with archive.open_archive(tmp_path / "cells") as opened:
        assert len(opened.files) == 2
        assert {opened.read(name) for name in opened.files} == {b"one", b"two"}


def with_names(path, written, stored):
    """A zip whose member `written` has the name of the bytes `stored`, without the UTF-8 flag."""
    write_zip(path, {written: b"one"})
    path.write_bytes(path.read_bytes().replace(written.encode(), stored))
    return path


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("é/1.png".encode(), "é/1.png"),  # as a Mac writes it
        (b"\x82_/1.png", "é_/1.png"),  # code page 437
        (b"\x8c\x8c/1.png", "îî/1.png"),  # another code page
    ],
)
def test_member_names_without_an_encoding(tmp_path, stored, name):
    path = with_names(tmp_path / "cells.zip", "xx/1.png", stored)
    with archive.open_archive(path) as opened:
        assert opened.files == (name,)
        assert opened.read(name) == b"one"


def test_the_name_in_a_unicode_path_field_counts(tmp_path):
    info = zipfile.ZipInfo("caf_/1.png")
    name = "café/1.png".encode()
    crc = zlib.crc32(b"caf_/1.png")
    info.extra = struct.pack("<HHBI", 0x7075, 5 + len(name), 1, crc) + name
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as zipped:
        zipped.writestr(info, b"one")
    with archive.open_archive(tmp_path / "cells.zip") as opened:
        assert opened.files == ("café/1.png",)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_left_out(tmp_path):
    write_folder(tmp_path / "cells", {"a/1.png": b"one"})
    os.mkfifo(tmp_path / "cells/a/2.png")
    with archive.open_archive(tmp_path / "cells") as opened:
        assert opened.files == ("a/1.png",)
    assert opened.left_out == (LeftOut("neither a file nor a folder", "", 1),)


@pytest.mark.parametrize(
    "name", ["/etc/a.png", "../a.png", "a/../../b.png", "C:/a.png", "..\\a.png"]
)
def test_open_zip_refuses_members_outside_the_folder(tmp_path, name):
    path = write_zip(tmp_path / "cells.zip", {"a/1.png": b"one", name: b"out"})
    with pytest.raises(UserError, match="escapes its folder, expected a relative") as caught:
        archive.open_zip(path)
    assert str(path) in str(caught.value)


def test_open_zip_refuses_a_path_twice(tmp_path):
    path = write_zip(tmp_path / "cells.zip", {"a/1.png": b"one", "a\\1.png": b"other"})
    with pytest.raises(UserError, match=r"cells.zip: member .* occurs twice"):
        archive.open_zip(path)


def test_open_zip_refuses_an_encrypted_member(tmp_path):
    path = write_zip(tmp_path / "cells.zip", {"a/1.png": b"one"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cells.zip: member 'a/1.png' is encrypted, expected"):
        archive.open_zip(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_open_zip_refuses_methods_that_cannot_be_bounded(tmp_path, method):
    path = write_zip(tmp_path / "cells.zip", {"a/1.png": b"one"}, method)
    with pytest.raises(UserError, match=f"cells.zip.* method {method}, expected stored or deflate"):
        archive.open_zip(path)


def test_open_zip_refuses_to_unpack_past_the_limit(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "cells.zip", {"a/1.png": bytes(600), "a/2.png": bytes(600)})
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1199)
    with pytest.raises(UserError, match=r"cells.zip: unpacks to 1200 bytes, expected at most 1199"):
        archive.open_zip(path)


def test_a_member_past_the_limit_is_not_read(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "cells.zip", {"a/1.png": bytes(600)})
    monkeypatch.setattr(archive, "MAX_MEMBER", 599)
    with archive.open_archive(path) as opened, pytest.raises(ValueError, match="600 bytes"):
        opened.read("a/1.png")


def test_a_member_that_lies_about_its_size_takes_no_more_memory(tmp_path):
    path = write_zip(tmp_path / "cells.zip", {"a/1.png": bytes(50_000_000)})
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02") + 24
    data[start : start + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(data)
    tracemalloc.start()
    with (
        archive.open_archive(path) as opened,
        pytest.raises(ValueError, match="damaged in the zip"),
    ):
        opened.read("a/1.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_damaged_member_is_named_when_it_is_read(tmp_path):
    path = write_zip(tmp_path / "cells.zip", {"a/1.png": b"one" * 99}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"oneone", b"twoone", 1))
    with archive.open_archive(path) as opened, pytest.raises(ValueError, match="CRC"):
        opened.read("a/1.png")


def test_open_zip_names_what_it_found_instead(tmp_path):
    with pytest.raises(UserError, match=r"none.zip: no such file or folder"):
        archive.open_zip(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("cells")
    with pytest.raises(UserError, match=r"text.zip: not a zip file, expected"):
        archive.open_zip(tmp_path / "text.zip")
    whole = io.BytesIO()
    write_zip(whole, FILES)
    (tmp_path / "cut.zip").write_bytes(whole.getvalue()[:-40])
    with pytest.raises(UserError, match=r"cut.zip: truncated or damaged, expected"):
        archive.open_zip(tmp_path / "cut.zip")
