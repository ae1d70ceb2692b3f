"""Tests of bloodjax/io/files.py."""

import contextlib
import errno
import os
import shutil

import pytest

from bloodjax.errors import UserError
from bloodjax.io import files


def test_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    for text in ("first", "zweite – größer"):
        files.atomic_write(path, text)
        assert path.read_text("utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "a.json", tmp_path / "there" / "b.json"
    link.symlink_to(target)  # which does not exist yet
    for text in ("first", "second"):
        files.atomic_write(link, text)
        assert link.is_symlink()
        assert target.read_text("utf-8") == text
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json", "b.json", "there"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(b"old")
    with contextlib.suppress(KeyError), files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        raise KeyError
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"old"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a.json"
    files.atomic_write(path, "old")
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        files.atomic_write(path, "new")
    assert caught.value.filename == str(path)
    assert path.read_text("utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_name_that_is_not_utf_8_is_written_as_an_escape(tmp_path):
    files.atomic_write(tmp_path / "a.csv", "caf\udce9.png,\N{DROP OF BLOOD}")
    assert (tmp_path / "a.csv").read_text("utf-8") == "caf\\udce9.png,\N{DROP OF BLOOD}"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[1, 2]", "3"),
        (b"[1, 2", "a.json: is damaged (JSONDecodeError: Expecting"),
        (b"\xff", "a.json: is damaged (UnicodeDecodeError: "),
        (b"[" * 100_000, "a.json: is damaged (RecursionError: "),
        (b'["x"]', "a.json: is damaged (TypeError: unsupported operand"),
        (None, "a.json: No such file or directory, expected numbers"),
    ],
)
def test_reads_json_or_says_what_is_wrong_in_a_line(content, expected, tmp_path):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    try:
        found = str(files.read_json(path, "numbers", sum))
    except UserError as error:
        found = str(error).removeprefix(f"{tmp_path}/")
    assert found.startswith(expected)
    assert len(found.splitlines()) == 1


def test_makes_folders_and_says_where_it_cannot(tmp_path):
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*expected a folder"):
        files.make_folder(tmp_path / "file" / "below")


def test_a_reason_names_the_file_or_all_that_is_known():
    assert files.reason(OSError(28, "No space left", "a/b")) == "a/b: No space left"
    assert files.reason(OSError(28, "No space left")) == "No space left"
    assert files.reason(shutil.Error([("a", "b", "why")])) == "[('a', 'b', 'why')]"


def test_a_folder_that_could_be_made_is_not_made_by_the_check(tmp_path):
    files.check_folder(tmp_path)
    files.check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "below", "below/deeper"])
def test_a_file_in_the_place_of_a_folder_is_found_by_the_check(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file:? is a file, expected a folder"):
        files.check_folder(tmp_path / "file" / below)


def test_a_read_only_folder_is_found_by_the_check(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match=r"is read-only, expected a folder"):
        files.check_folder(tmp_path / "new")


def test_a_folder_in_the_place_of_a_file_is_found_by_the_check(tmp_path):
    files.check_file(tmp_path / "new" / "table.csv")
    (tmp_path / "table.csv").mkdir()
    with pytest.raises(UserError, match=r"table.csv: is a folder, expected a file to write"):
        files.check_file(tmp_path / "table.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match=r"pipe.csv: is no ordinary file, expected a file to write"):
        files.check_file(tmp_path / "pipe.csv")


def wrapped(cause):
    error = ValueError("a library's own words")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (wrapped(OSError(errno.EDQUOT, "over quota")), "Disk quota exceeded"),
        (ValueError("INTERNAL: write: [OS error 28: No space left on device]"), "No space left on"),
        (wrapped(OSError(errno.EACCES, "Permission denied")), None),
        (ValueError("anything else"), None),
    ],
)
def test_a_disk_that_takes_no_more_is_told_from_other_errors(error, expected):
    found = files.disk_full_reason(error)
    assert found is expected or found.startswith(expected)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_link_replaces_a_file_and_is_a_copy_without_links(tmp_path, monkeypatch, has_links):
    def fail(*_):
        raise OSError(errno.EPERM, "no links")

    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("new")
    target.write_text("old")
    if not has_links:
        monkeypatch.setattr(os, "link", fail)
    files.link(source, target)
    assert target.read_text() == "new"
    assert os.path.samefile(source, target) == has_links
