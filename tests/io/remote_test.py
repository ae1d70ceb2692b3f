"""Tests of bloodjax/io/remote.py, on emulators of S3 and GCS."""

import concurrent.futures
import errno
import os
import time

import pytest

from bloodjax.io import bucket_connection, buckets, message_urls, remote

from .error_messages import error_of

CONTENT = {"train/a/1.png": b"one", "train/b/2.png": b"two", "test/a/3.png": b"\n-\r\n\r"}


@pytest.fixture
def downloads(monkeypatch):
    """The names of the objects that are downloaded."""
    names = []
    fetch = buckets.fetch

    def spy(url, *args):
        names.append(url.rpartition("/")[2])
        return fetch(url, *args)

    monkeypatch.setattr(buckets, "fetch", spy)
    return names


def fill(bucket, content=CONTENT, folder="cells"):
    for name, data in content.items():
        buckets.write_bytes(bucket / f"{folder}/{name}", data)
    return bucket / folder


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_is_copied_and_then_only_what_changed(bucket, downloads, tmp_path):
    url = fill(bucket)
    fill(bucket, {"x": b"other"}, "cells2")
    copy = remote.local_copy(url)
    assert copy.is_relative_to(tmp_path / "cache" / "remote")
    assert copy.name == "cells"
    assert files_of(copy) == CONTENT
    assert len(downloads) == 3
    assert remote.local_copy(f"{url}/") == copy
    assert len(downloads) == 3
    buckets.write_bytes(f"{url}/train/a/1.png", b"new")  # of the same size
    buckets.write_bytes(f"{url}/train/c/4.png", b"four")
    remote.delete(f"{url}/test/a/3.png")
    (copy / "train/b/2.png").write_bytes(b"oops")
    (copy / "stray.png").write_bytes(b"of nobody")
    assert files_of(remote.local_copy(url)) == {
        "train/a/1.png": b"new",
        "train/b/2.png": b"two",
        "train/c/4.png": b"four",
    }
    assert sorted(downloads[3:]) == ["1.png", "2.png", "4.png"]
    assert not (copy / "test").exists()
    assert not list(copy.parents[1].glob("partial*"))


def test_an_object_is_copied_under_its_name(bucket, downloads):
    url = bucket / "sets/cells.v1.zip"
    buckets.write_bytes(url, b"zip")
    copy = remote.local_copy(url)
    assert (copy.name, copy.read_bytes()) == ("cells.v1.zip", b"zip")
    remote.local_copy(url)
    assert downloads == ["cells.v1.zip"]


def test_a_folder_takes_the_place_of_an_object_of_its_name(bucket):
    buckets.write_bytes(bucket / "cells", b"a file")
    assert remote.local_copy(bucket / "cells").is_file()
    remote.delete(bucket / "cells")
    url = fill(bucket)
    assert files_of(remote.local_copy(url)) == CONTENT


def test_a_damaged_cache_is_filled_again(bucket, downloads):
    url = fill(bucket)
    copy = remote.local_copy(url)
    (copy.parents[1] / "index.json").write_text('{"a": 3', "utf-8")
    assert files_of(remote.local_copy(url)) == CONTENT
    assert len(downloads) == 6


def test_some_objects_of_a_folder_are_copied(bucket, downloads):
    url = fill(bucket)
    copies = remote.local_copies(
        [f"{url}/train/b/2.png", f"{url}/train/a/1.png", f"{url}/train/a/9"]
    )
    assert [path.read_bytes() for path in copies[:2]] == [b"two", b"one"]
    assert not copies[2].exists()
    assert sorted(downloads) == ["1.png", "2.png"]


def test_a_process_copies_a_url_once_and_messages_name_it(bucket, downloads):
    url = fill(bucket)
    path = remote.local(f"{url}/")
    buckets.write_bytes(f"{url}/train/a/1.png", b"new")
    assert remote.local(url) == path
    assert len(downloads) == 3
    assert message_urls.with_urls(f"{path}/train/a/1.png: is damaged") == (
        f"{url}/train/a/1.png: is damaged"
    )


def test_processes_that_share_a_cache_download_once(bucket, downloads):
    """The lock is one of open files, so threads stand for processes."""
    url = fill(bucket)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(remote.local_copy, [url] * 4))
    assert len(set(copies)) == 1
    assert files_of(copies[0]) == CONTENT
    assert len(downloads) == 3


def test_downloads_that_a_killed_process_left_are_removed(bucket):
    url = fill(bucket)
    copy = remote.local_copy(url)
    for name, age in (("partial-1-1", 2 * 86400), ("partial-2-1", 60)):
        (copy.parents[1] / name).mkdir()
        os.utime(copy.parents[1] / name, (time.time() - age,) * 2)
    buckets.write_bytes(f"{url}/new", b"")
    remote.local_copy(url)
    assert [path.name for path in copy.parents[1].glob("partial*")] == ["partial-2-1"]


def test_names_that_cannot_be_files_beside_one_another_are_one_line(bucket):
    for name in ("a", "a/b"):
        buckets.write_bytes(bucket / f"cells/{name}", name.encode())
    assert error_of(remote.local_copy, bucket / "cells") == (
        f"{bucket / 'cells'}: the objects a and a/b cannot be a file and a folder of one name, "
        "expected one of them"
    )


def test_a_full_disk_is_one_line(bucket, monkeypatch):
    url = fill(bucket)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bucket_connection.file_system(url), "get_file", full)
    message = error_of(remote.local_copy, url)
    assert message.startswith(f"{url}: cannot be copied to ")
    assert "(No space left on device), expected room" in message
    assert "BLOODJAX_CACHE names another cache" in message


def test_an_interrupted_copy_goes_on(bucket, monkeypatch):
    url = fill(bucket)
    fetch, done = buckets.fetch, []

    def stops(where, *args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(where)
        return fetch(where, *args)

    monkeypatch.setattr(bucket_connection, "PARALLEL", 1)
    monkeypatch.setattr(buckets, "fetch", stops)
    with pytest.raises(KeyboardInterrupt):
        remote.local_copy(url)
    done.clear()
    assert files_of(remote.local_copy(url)) == CONTENT
    assert len(done) == 1


def test_a_folder_is_uploaded_and_then_only_what_changed(bucket, tmp_path, monkeypatch):
    folder, url = tmp_path / "run", bucket / "runs/1"
    for name, data in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    sent = []
    send = buckets.send
    monkeypatch.setattr(buckets, "send", lambda path, to: (sent.append(to), send(path, to)))
    last = ["train/b/2.png", "train/a/1.png"]
    assert sorted(remote.upload(folder, url, last=last)) == sorted(CONTENT)
    assert sent[-2:] == [f"{url}/{name}" for name in last]
    assert {name: buckets.read_bytes(f"{url}/{name}") for name in CONTENT} == CONTENT
    assert remote.upload(folder, url) == []
    (folder / "train/a/1.png").write_bytes(b"eno")
    assert remote.upload(folder, url) == ["train/a/1.png"]
    assert remote.upload(folder / "train/a/1.png", bucket / "one") == [""]
    assert remote.upload(folder / "train/a/1.png", bucket / "one") == []
    with pytest.raises(FileNotFoundError):
        remote.upload(folder, url, ["none"])
    other = tmp_path / "other"
    assert sorted(remote.download(url, other)) == sorted(CONTENT)
    assert files_of(other) == CONTENT | {"train/a/1.png": b"eno"}
    (other / "train/b/2.png").write_bytes(b"owt")
    assert remote.download(url, other) == ["train/b/2.png"]
    assert remote.download(f"{url}/train/b/2.png", other) == ["2.png"]
    assert error_of(remote.download, url, other, ["x"]) == (
        f"{url}/x: no such object or folder in the bucket"
    )
    remote.delete(url, first=["train/a/1.png"])
    assert buckets.list_files(url) == {}


def test_what_is_missing_is_one_line(bucket):
    fill(bucket)
    url = bucket / "cells/none.zip"
    assert error_of(remote.local_copy, url) == f"{url}: no such object or folder in the bucket"
    assert error_of(remote.local_copy, bucket / "cel") == (
        f"{bucket / 'cel'}: no such object or folder in the bucket"
    )


def test_a_local_path_is_its_own():
    assert remote.local("some/where") == "some/where"
    assert error_of(remote.local, "ftp://b/x").startswith("ftp://b/x: ftp:// is not supported")
