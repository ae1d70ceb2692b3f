"""Tests of bloodjax/io/mirror.py, on emulators of S3 and GCS."""

import os
import shutil

import pytest

from bloodjax.errors import UserError
from bloodjax.io import buckets, mirror, remote

from .run_files import RUN, STEP, content_of, fill


@pytest.fixture
def copy(bucket, tmp_path):
    """A mirror of an empty local folder."""
    (tmp_path / "run").mkdir()
    return mirror.Mirror(tmp_path / "run", bucket / "run")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(mirror, "_RETRY_SECONDS", 0.01)


def test_a_push_uploads_what_has_changed_and_what_makes_it_valid_last(copy, sent):
    fill(copy.folder)
    copy.push()
    assert content_of(copy.url) == RUN
    assert sent[-3:] == ["config.json", f"{STEP}/checksums.json", "report/index.html"]
    sent.clear()
    copy.push()
    assert sent == []
    (copy.folder / "metrics.jsonl").write_bytes(b"{}\n{}\n")
    copy.push()
    assert sent == ["metrics.jsonl"]


def test_a_push_deletes_what_is_gone_and_the_checksums_first(copy, monkeypatch):
    fill(copy.folder)
    copy.push()
    (copy.folder / "checkpoints" / "14").mkdir()
    fill(copy.folder, {"checkpoints/14/checksums.json": b"sums"})
    shutil.rmtree(copy.folder / STEP)
    removed, remove = [], buckets.remove
    monkeypatch.setattr(buckets, "remove", lambda url: (removed.append(url), remove(url)))
    copy.push()
    assert removed[0] == f"{copy.url}/{STEP}/checksums.json"
    left = {"metrics.jsonl", "config.json", "report/index.html", "checkpoints/14/checksums.json"}
    assert content_of(copy.url).keys() == left


@pytest.mark.parametrize("made_again", [False, True])
def test_a_folder_that_was_deleted_is_not_deleted_in_the_bucket(copy, impatient, made_again):
    fill(copy.folder)
    copy.push()
    shutil.rmtree(copy.folder)
    if made_again:  # the run creates missing folders
        fill(copy.folder, {"metrics.jsonl": b"new"})
    with pytest.raises(UserError) as caught:
        copy.push(patience=60.0)
    assert str(caught.value) == (
        f"the local copy of {copy.url} (in {copy.folder.parent}) was deleted while it was in use; "
        "the bucket has what was uploaded before"
    )
    assert content_of(copy.url) == RUN


def test_objects_of_others_are_left_alone(copy):
    buckets.write_bytes(f"{copy.url}/notes.txt", b"mine")
    fill(copy.folder)
    copy.push()
    (copy.folder / "config.json").unlink()
    copy.push()
    assert content_of(copy.url).keys() == {*RUN, "notes.txt"} - {"config.json"}


def test_what_is_not_complete_is_not_uploaded(copy):
    partial = ["lock", "fold1/lock", "config.json.tmp", "checkpoints/8.orbax-checkpoint-tmp/d/1"]
    fill(copy.folder, dict.fromkeys(partial, b"part"))
    complete = {"locked": b"1", "a.tmpl/x": b"2", "cells.tmp.csv": b"3"}
    fill(copy.folder, complete)
    copy.push()
    assert content_of(copy.url) == complete


def test_a_file_that_the_run_deletes_meanwhile_is_no_error(copy, monkeypatch):
    fill(copy.folder)
    upload = remote.upload

    def deleting(*args, **options):
        shutil.rmtree(copy.folder / STEP, ignore_errors=True)
        return upload(*args, **options)

    monkeypatch.setattr(remote, "upload", deleting)
    copy.push()
    assert content_of(copy.url).keys() == {"metrics.jsonl", "config.json", "report/index.html"}


def test_a_bucket_that_fails_for_a_while_is_asked_again(copy, monkeypatch, impatient, caplog):
    fill(copy.folder)
    failures, upload = ["one", "two"], remote.upload

    def failing(*args, **options):
        if failures:
            raise UserError(f"gs://b: {failures.pop()}")
        return upload(*args, **options)

    monkeypatch.setattr(remote, "upload", failing)
    with caplog.at_level("INFO", "bloodjax"):
        copy.push(patience=60.0)
    assert content_of(copy.url) == RUN
    assert caplog.messages == ["gs://b: two; trying again for up to 60 s"]


def test_a_bucket_that_fails_for_long_ends_the_push(copy, monkeypatch, impatient):
    fill(copy.folder)

    def failing(*args, **options):
        raise UserError("gs://b: refused")

    monkeypatch.setattr(remote, "upload", failing)
    with pytest.raises(UserError, match=r"^gs://b: refused$"):
        copy.push(patience=0.05)


@pytest.mark.parametrize("times", [1, 2])
def test_a_cache_that_another_command_updates_is_read_again(bucket, tmp_path, monkeypatch, times):
    remote.upload(fill(tmp_path / "original"), bucket / "run")
    link, removed = mirror.link, []

    def removing(source, target):
        if source.endswith("config.json") and len(removed) < times:
            removed.append(source)
            os.unlink(source)
        link(source, target)

    monkeypatch.setattr(mirror, "link", removing)
    if times == 1:
        mirror.copy_into(bucket / "run", tmp_path / "copy")
        assert all((tmp_path / "copy" / name).read_bytes() == data for name, data in RUN.items())
        return
    with pytest.raises(UserError, match=r"/run: its copy in the cache cannot be read \(.*No such"):
        mirror.copy_into(bucket / "run", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
