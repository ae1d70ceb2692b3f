"""Tests of bloodjax/io/buckets.py, on emulators of S3 and GCS."""

import concurrent.futures
import hashlib
import os

import pytest

from bloodjax.io import bucket_connection, buckets
from bloodjax.io.bucket_services import ObjectInfo

from ..emulators import Proxy
from .error_messages import error_of


def fetched(url, folder):
    """The content of an object, through a file."""
    info = buckets.stat(url)
    assert buckets.fetch(url, info, folder / "copy", folder / "part") == info
    assert not (folder / "part").exists()
    return (folder / "copy").read_bytes()


def test_an_object_is_written_read_replaced_and_deleted(bucket):
    url = bucket / "a/b c+%25#.txt"
    assert buckets.stat(url) is None
    tag = buckets.write_bytes(url, b"one")
    assert buckets.stat(url) == ObjectInfo(3, tag, hashlib.md5(b"one").hexdigest())
    assert buckets.read_bytes(url) == b"one"
    assert list(buckets.list_files(bucket / "a")) == ["b c+%25#.txt"]
    assert buckets.write_bytes(url, b"") != tag
    assert buckets.read_bytes(url) == b""
    buckets.remove(url)
    buckets.remove(url)
    assert buckets.stat(url) is None
    assert error_of(buckets.read_bytes, url) == f"{url}: no such object or folder in the bucket"


def test_a_copy_that_is_replaced_is_there_at_any_time(bucket, tmp_path, monkeypatch):
    url, replace, before = bucket / "a.txt", os.replace, []

    def recorded(source, target):
        before.append(target.read_bytes() if target.is_file() else None)
        replace(source, target)

    monkeypatch.setattr(buckets.os, "replace", recorded)
    for content in (b"one", b"two"):
        buckets.write_bytes(url, content)
        assert fetched(url, tmp_path) == content
    assert before == [None, b"one"]


def test_of_several_one_creates_and_one_replaces(bucket):
    url = bucket / "lock"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tags = list(pool.map(lambda i: buckets.create_exclusive(url, b"owner %d" % i), range(8)))
        (winner,) = [i for i, tag in enumerate(tags) if tag]
        assert buckets.read_bytes(url) == b"owner %d" % winner
        tag = tags[winner]
        assert buckets.stat(url).tag == tag
        new = list(pool.map(lambda i: buckets.replace(url, b"next %d" % i, tag), range(8)))
    (winner,) = [i for i, each in enumerate(new) if each]
    assert buckets.read_bytes(url) == b"next %d" % winner
    assert buckets.replace(url, b"late", tag) is None
    assert buckets.replace(bucket / "none", b"late", tag) is None


def test_creating_again_with_the_same_content_succeeds(bucket):
    """The first request may have succeeded, and its answer may have been lost."""
    url = bucket / "lock"
    tag = buckets.create_exclusive(url, b"mine")
    assert buckets.create_exclusive(url, b"mine") == tag
    assert buckets.create_exclusive(url, b"ours") is None


@pytest.mark.parametrize("name", ["cells/../../../evil", "cells//x", "cells/./x"])
def test_a_name_that_leaves_the_folder_is_refused(make_bucket, name):
    bucket = make_bucket("s3")
    system = bucket_connection.file_system(bucket.url)
    system.call_s3("put_object", Bucket=bucket.name, Key=name, Body=b"x")
    relative = name.removeprefix("cells/")
    assert error_of(buckets.list_files, bucket / "cells") == (
        f"{bucket / 'cells'}: the object {relative!r} cannot be a file, expected a path"
    )


def test_a_bucket_that_does_not_exist_is_one_line(bucket):
    url = f"{bucket.scheme}://no-such-bucket/cells.zip"
    none = f"no bucket no-such-bucket at {bucket.endpoint}"
    for function, *more in (
        (buckets.list_files,),
        (buckets.stat,),
        (buckets.read_bytes,),
        (buckets.write_bytes, b"x"),
        (buckets.create_exclusive, b"x"),
    ):
        message = error_of(function, url, *more)
        # GCS does not tell a read of one object which of the two is missing.
        unclear = function is buckets.read_bytes and bucket.scheme == "gs"
        assert message == f"{url}: {'no such object or folder in the bucket' if unclear else none}"


def test_a_damaged_object_is_one_line(proxy, monkeypatch, tmp_path):
    bucket, _ = proxy
    url = bucket / "cells.zip"
    buckets.write_bytes(url, b"the content")
    monkeypatch.setattr(buckets, "_md5", lambda path: "0" * 32)
    assert error_of(fetched, url, tmp_path) == (
        f"{url}: the content differs from the MD5 that the bucket states, in each of 3 downloads"
    )


def test_an_object_that_is_too_short_is_one_line(bucket, monkeypatch, tmp_path):
    url = bucket / "cells.zip"
    buckets.write_bytes(url, b"the content")
    system = bucket_connection.file_system(bucket.url)
    whole = system.get_file

    def cut(path, to, **kwargs):
        whole(path, to, **kwargs)
        os.truncate(to, 5)

    monkeypatch.setattr(system, "get_file", cut)
    assert error_of(fetched, url, tmp_path) == (
        f"{url}: 5 of 11 bytes arrived, in each of 3 downloads"
    )
    monkeypatch.undo()


def test_a_download_that_is_cut_is_repeated(proxy, tmp_path):
    bucket, between = proxy
    url = bucket / "cells.zip"
    data = os.urandom(300_000)
    buckets.write_bytes(url, data)
    info, path = buckets.stat(url), tmp_path / "copy"
    between.drops, between.cut = 4, 1000
    buckets.fetch(url, info, path, tmp_path / "part")
    assert path.read_bytes() == data
    assert between.drops == 0


def test_a_download_from_gcs_that_is_cut_is_repeated(make_bucket, monkeypatch, tmp_path):
    bucket = make_bucket("gs")
    url, data = bucket / "cells.zip", os.urandom(300_000)
    buckets.write_bytes(url, data)
    between = Proxy(bucket.endpoint)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", between.address)
    info, path = buckets.stat(url), tmp_path / "copy"
    between.drops, between.cut = 1, 1000
    assert buckets.fetch(url, info, path, tmp_path / "part") == info
    assert (between.drops, path.read_bytes()) == (0, data)
    between.close()


def test_the_etag_of_an_encrypted_object_is_not_its_md5(make_bucket, monkeypatch, tmp_path):
    bucket = make_bucket("s3")
    url, options = bucket / "cells.zip", {"ServerSideEncryption": "aws:kms"}
    system = bucket_connection.file_system(url)
    system.call_s3("put_object", Bucket=bucket.name, Key="cells.zip", Body=b"content", **options)
    monkeypatch.setattr(buckets, "_md5", lambda path: "0" * 32)
    assert fetched(url, tmp_path) == b"content"


def test_a_large_file_is_sent_in_parts_and_is_known_again(make_bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(buckets, "_PART", 5 * 2**20)
    path, url = tmp_path / "large", make_bucket("s3") / "large"
    path.write_bytes(bytes(11 * 2**20))
    buckets.send(path, url)
    info = buckets.stat(url)
    assert info.tag.endswith("-3")
    assert buckets.is_same(path, info)
    path.write_bytes(b"1" + bytes(11 * 2**20 - 1))
    assert not buckets.is_same(path, info)
    assert not buckets.is_same(tmp_path / "none", info)
