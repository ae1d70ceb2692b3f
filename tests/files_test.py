"""Tests of bloodjax/files.py."""

import errno

import pytest

from bloodjax import files
from bloodjax.errors import UserError


def test_replaces_the_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    for text in ("first", "zweite – größer"):
        files.write_whole(path, text)
        assert path.read_text("utf-8") == text
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        files.write_whole(path, "new \ud800")
    assert path.read_text("utf-8") == "old"


def test_makes_folders_and_says_where_it_cannot(tmp_path):
    files.make_folder(tmp_path / "a" / "b")
    files.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*expected a folder"):
        files.make_folder(tmp_path / "file" / "below")


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
    found = files.no_room(error)
    assert found is expected or found.startswith(expected)
