"""Tests of bloodjax/io/remote.py, on emulators of S3 and GCS."""

import concurrent.futures
import errno
import hashlib
import os
import time

import pytest

from bloodjax.errors import UserError
from bloodjax.io import buckets, remote

from ..emulators import Proxy, environment, refusing

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


@pytest.fixture
def proxy(make_bucket, monkeypatch):
    """A bucket of S3 behind a proxy; an answer may take half a second."""
    bucket = make_bucket("s3")
    between = Proxy(bucket.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.address)
    monkeypatch.setattr(buckets, "TIMEOUT", 0.5)
    monkeypatch.setattr(buckets, "TRIES", 1)
    yield bucket, between
    between.close()


def fill(bucket, content=CONTENT, folder="cells"):
    for name, data in content.items():
        remote.write_bytes(bucket / f"{folder}/{name}", data)
    return bucket / folder


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def error_of(function, *args):
    with pytest.raises(UserError) as caught:
        function(*args)
    return str(caught.value)


def test_paths_of_buckets_are_recognised():
    assert all(map(remote.is_remote, ("gs://b", "gcs://b/x", "s3://b/x/")))
    assert not any(map(remote.is_remote, ("/s3", "s3:/b", "hf:a/b", "tfds:x", "https://b/x")))
    assert remote.normalised("gcs://b/x/") == "gs://b/x"
    assert remote.absolute("gcs://b/x/") == "gs://b/x"
    assert remote.absolute("x") == os.path.abspath("x")
    assert remote.local("some/where") == "some/where"
    assert error_of(remote.local, "ftp://b/x") == (
        "ftp://b/x: ftp:// is not supported, expected a local path, gs://BUCKET/NAME or "
        "s3://BUCKET/NAME"
    )
    assert error_of(remote.local, "s3:///x").startswith("s3:///x: names no bucket")


def test_an_object_is_written_read_replaced_and_deleted(bucket):
    url = bucket / "a/b c+%25#.txt"
    assert remote.stat(url) is None
    tag = remote.write_bytes(url, b"one")
    assert remote.stat(url) == remote.ObjectInfo(3, tag, hashlib.md5(b"one").hexdigest())
    assert remote.read_bytes(url) == b"one"
    assert list(remote.list_files(bucket / "a")) == ["b c+%25#.txt"]
    assert remote.write_bytes(url, b"") != tag
    assert remote.read_bytes(url) == b""
    remote.delete(url)
    remote.delete(url)
    assert remote.stat(url) is None
    assert error_of(remote.read_bytes, url) == f"{url}: no such object or folder in the bucket"


def test_of_several_one_creates_and_one_replaces(bucket):
    url = bucket / "lock"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tags = list(pool.map(lambda i: remote.create_exclusive(url, b"owner %d" % i), range(8)))
        (winner,) = [i for i, tag in enumerate(tags) if tag]
        assert remote.read_bytes(url) == b"owner %d" % winner
        tag = tags[winner]
        assert remote.stat(url).tag == tag
        new = list(pool.map(lambda i: remote.replace(url, b"next %d" % i, tag), range(8)))
    (winner,) = [i for i, each in enumerate(new) if each]
    assert remote.read_bytes(url) == b"next %d" % winner
    assert remote.replace(url, b"late", tag) is None
    assert remote.replace(bucket / "none", b"late", tag) is None


def test_creating_again_with_the_same_content_succeeds(bucket):
    """The first request may have succeeded, and its answer may have been lost."""
    url = bucket / "lock"
    tag = remote.create_exclusive(url, b"mine")
    assert remote.create_exclusive(url, b"mine") == tag
    assert remote.create_exclusive(url, b"ours") is None


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
    remote.write_bytes(f"{url}/train/a/1.png", b"new")  # of the same size
    remote.write_bytes(f"{url}/train/c/4.png", b"four")
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
    remote.write_bytes(url, b"zip")
    copy = remote.local_copy(url)
    assert (copy.name, copy.read_bytes()) == ("cells.v1.zip", b"zip")
    remote.local_copy(url)
    assert downloads == ["cells.v1.zip"]


def test_a_folder_takes_the_place_of_an_object_of_its_name(bucket):
    remote.write_bytes(bucket / "cells", b"a file")
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
    remote.write_bytes(f"{url}/train/a/1.png", b"new")
    assert remote.local(url) == path
    assert len(downloads) == 3
    assert remote.with_urls(f"{path}/train/a/1.png: is damaged") == (
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
    remote.write_bytes(f"{url}/new", b"")
    remote.local_copy(url)
    assert [path.name for path in copy.parents[1].glob("partial*")] == ["partial-2-1"]


def test_names_that_cannot_be_files_beside_one_another_are_one_line(bucket):
    for name in ("a", "a/b"):
        remote.write_bytes(bucket / f"cells/{name}", name.encode())
    assert error_of(remote.local_copy, bucket / "cells") == (
        f"{bucket / 'cells'}: the objects a and a/b cannot be a file and a folder of one name, "
        "expected one of them"
    )


def test_a_full_disk_is_one_line(bucket, monkeypatch):
    url = fill(bucket)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(buckets._system(url), "get_file", full)
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

    monkeypatch.setattr(buckets, "PARALLEL", 1)
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
    assert {name: remote.read_bytes(f"{url}/{name}") for name in CONTENT} == CONTENT
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
    assert remote.list_files(url) == {}


def test_large_files_are_sent_in_parts_and_are_known_again(make_bucket, tmp_path, monkeypatch):
    bucket = make_bucket("s3")
    monkeypatch.setattr(buckets, "_PART", 5 * 2**20)
    (tmp_path / "large").write_bytes(bytes(11 * 2**20))
    url = bucket / "large"
    assert remote.upload(tmp_path / "large", url) == [""]
    assert remote.stat(url).tag.endswith("-3")
    assert remote.upload(tmp_path / "large", url) == []
    assert remote.local_copy(url).stat().st_size == 11 * 2**20


@pytest.mark.parametrize("name", ["cells/../../../evil", "cells//x", "cells/./x"])
def test_a_name_that_leaves_the_folder_is_refused(make_bucket, name):
    bucket = make_bucket("s3")
    buckets._system(bucket.url).call_s3("put_object", Bucket=bucket.name, Key=name, Body=b"x")
    relative = name.removeprefix("cells/")
    assert error_of(remote.local_copy, bucket / "cells") == (
        f"{bucket / 'cells'}: the object {relative!r} cannot be a file, expected a path"
    )


def test_what_is_missing_is_one_line(bucket):
    fill(bucket)
    url = bucket / "cells/none.zip"
    assert error_of(remote.local_copy, url) == f"{url}: no such object or folder in the bucket"
    assert error_of(remote.local_copy, bucket / "cel") == (
        f"{bucket / 'cel'}: no such object or folder in the bucket"
    )


def test_a_bucket_that_does_not_exist_is_one_line(bucket):
    url = f"{bucket.scheme}://no-such-bucket/cells.zip"
    none = f"no bucket no-such-bucket at {bucket.endpoint}"
    for function, *more in (
        (remote.local_copy,),
        (remote.stat,),
        (remote.read_bytes,),
        (remote.write_bytes, b"x"),
        (remote.create_exclusive, b"x"),
    ):
        message = error_of(function, url, *more)
        # GCS does not tell a read of one object which of the two is missing.
        unclear = function is remote.read_bytes and bucket.scheme == "gs"
        assert message == f"{url}: {'no such object or folder in the bucket' if unclear else none}"


def test_no_credentials_is_one_line(make_bucket, monkeypatch):
    bucket = make_bucket("s3")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert error_of(remote.local_copy, bucket / "x") == (
        f"{bucket / 'x'}: no valid credentials (Unable to locate credentials), expected aws "
        "configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_refusal_is_one_line(scheme, status, monkeypatch, tmp_path):
    pytest.importorskip({"s3": "s3fs", "gs": "gcsfs"}[scheme], reason="needs the extra [remote]")
    with refusing(status) as endpoint:
        for name, value in environment(tmp_path, s3=endpoint, gcs=endpoint).items():
            monkeypatch.setenv(name, value)
        message = error_of(remote.local_copy, f"{scheme}://b/x")
    expected = "no valid credentials" if status == 401 else "refuses it"
    assert expected in message, message
    assert message.startswith(f"{scheme}://b/x: ")


def test_a_damaged_object_is_one_line(proxy, monkeypatch):
    bucket, _ = proxy
    url = bucket / "cells.zip"
    remote.write_bytes(url, b"the content")
    monkeypatch.setattr(buckets, "_md5", lambda path: "0" * 32)
    assert error_of(remote.local_copy, url) == (
        f"{url}: the content differs from the MD5 that the bucket states, in each of 3 downloads"
    )


def test_an_object_that_is_too_short_is_one_line(bucket, monkeypatch):
    url = bucket / "cells.zip"
    remote.write_bytes(url, b"the content")
    system = buckets._system(bucket.url)
    whole = system.get_file

    def cut(path, to, **kwargs):
        whole(path, to, **kwargs)
        os.truncate(to, 5)

    monkeypatch.setattr(system, "get_file", cut)
    assert error_of(remote.local_copy, url) == (
        f"{url}: 5 of 11 bytes arrived, in each of 3 downloads"
    )
    monkeypatch.undo()


def test_a_download_that_is_cut_is_repeated(proxy):
    bucket, between = proxy
    url = bucket / "cells.zip"
    data = os.urandom(300_000)
    remote.write_bytes(url, data)
    between.drops, between.cut = 4, 1000
    assert remote.local_copy(url).read_bytes() == data
    assert between.drops == 0


def test_a_download_from_gcs_that_is_cut_is_repeated(make_bucket, monkeypatch):
    bucket = make_bucket("gs")
    url, data = bucket / "cells.zip", os.urandom(300_000)
    remote.write_bytes(url, data)
    between = Proxy(bucket.endpoint)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", between.address)
    info = remote.stat(url)
    between.drops, between.cut = 1, 1000
    path = remote.cache_folder() / "cells.zip"
    path.parent.mkdir(parents=True)
    assert buckets.fetch(url, info, path, path.with_suffix(".tmp")) == info
    assert (between.drops, path.read_bytes()) == (0, data)
    between.close()


def test_a_bucket_that_drops_every_connection_is_one_line(proxy):
    bucket, between = proxy
    url = bucket / "cells.zip"
    between.drops = 10**6
    message = error_of(remote.local_copy, url)
    assert message.startswith(f"{url}: the connection to {between.address} failed (")
    assert message.endswith(", several times")
    assert between.connections > 1


def test_a_slow_bucket_is_waited_for(proxy):
    bucket, between = proxy
    between.delay = 0.2
    assert files_of(remote.local_copy(fill(bucket))) == CONTENT


def test_a_bucket_that_does_not_answer_is_one_line(proxy, monkeypatch):
    bucket, between = proxy
    monkeypatch.setattr(buckets, "TIMEOUT", 0.05)
    between.delay = 5.0
    assert error_of(remote.local_copy, bucket / "x") == (
        f"{bucket / 'x'}: no answer from {between.address} for 0.05 s, several times; try again"
    )


def test_an_endpoint_that_nobody_listens_at_is_one_line(make_bucket, monkeypatch):
    bucket = make_bucket("s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(buckets, "TRIES", 1)
    assert error_of(remote.local_copy, bucket / "x").startswith(
        f"{bucket / 'x'}: the connection to http://127.0.0.1:9 failed ("
    )


def test_without_the_library_is_one_line(monkeypatch):
    def missing(scheme):
        raise ImportError("No module named 's3fs'")

    monkeypatch.setattr(buckets, "_file_system", missing)
    monkeypatch.setenv("AWS_PROFILE", "another connection")
    assert error_of(remote.local_copy, "s3://b/x") == (
        "s3://b/x: buckets need the extra [remote]: pip install 'bloodjax[remote]' "
        "(No module named 's3fs')"
    )
