"""Tests of bloodjax/io/staging.py, on emulators of S3 and GCS."""

import os

import pytest

from bloodjax.errors import UserError
from bloodjax.io import buckets, message_urls, remote, staging
from bloodjax.io.files import atomic_write

from .run_files import RUN, content_of, fill


def test_an_output_with_the_name_of_an_incomplete_file_is_refused(bucket):
    with pytest.raises(UserError, match=r"/cells\.tmp: names that end in \.tmp are those of files"):
        staging.open_output(bucket / "cells.tmp")


def test_a_run_is_read_from_a_copy_and_added_to(bucket, sent, tmp_path):
    url = bucket / "run"
    remote.upload(fill(tmp_path / "original"), url)
    buckets.write_bytes(f"{url}/lock", b"held")
    sent.clear()
    with staging.opened():
        folder = staging.open_run(f"{url}/")
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert found == RUN.keys()
        assert message_urls.with_urls(f"{folder}: read") == f"{url}: read"
        atomic_write(folder / "config.json", "{1}")
        fill(folder, {"evaluate/test/metrics.json": b"{}", "compiled/program": b"for here"})
    assert sorted(sent) == ["config.json", "evaluate/test/metrics.json"]
    assert not folder.parent.exists()
    assert message_urls.with_urls(str(folder)) == str(folder)
    # What the cache has is not changed by what was written to the copy.
    (cached,) = (remote.cache_folder() / "remote").rglob("config.json")
    assert cached.read_bytes() == b"{}"


def test_a_run_that_is_not_there(bucket):
    buckets.write_bytes(bucket / "run/lock", b"held")
    with pytest.raises(UserError, match=f"^{bucket.url}/run: no such folder in the bucket$"):
        staging.open_run(bucket / "run")


@pytest.mark.parametrize("name", ["table.csv", "folder"])
def test_an_output_is_uploaded_with_what_is_beside_it(bucket, name):
    with staging.opened():
        path = staging.open_output(bucket / f"here/{name}")
        assert not path.exists()
        content = {name: b"1"} if "." in name else {f"{name}/a": b"1", f"{name}/b/c": b"2"}
        fill(path.parent, content | {f"{name}.json": b"beside"})
    assert content_of(bucket / "here") == content | {f"{name}.json": b"beside"}


def test_an_output_shows_what_is_there(bucket, monkeypatch, sent):
    monkeypatch.setattr(staging, "_SMALL", 3)
    fill_in = {"run/out/small": b"one", "run/out/large": b"long", "run/beside": b"b"}
    for name, data in fill_in.items():
        buckets.write_bytes(bucket / name, data)
    with staging.opened():
        path = staging.open_output(bucket / "run/out")
        assert (path / "small").read_bytes() == b"one"
        assert (path / "large").read_bytes() == b""
        assert os.listdir(path.parent) == ["out"]
    assert sent == []
    assert content_of(bucket / "run") == {k.removeprefix("run/"): v for k, v in fill_in.items()}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("names", [["table.csv"], ["out/a", "out/b/c"]])
def test_an_output_does_not_list_what_is_beside_it(bucket, names, there):
    for name in [*names, "out/kept"] if there else []:
        buckets.write_bytes(bucket / name, b"before")
    buckets.write_bytes(bucket / "beside//strange", b"of another")
    with pytest.raises(UserError, match="cannot be a file"):
        buckets.list_files(f"{bucket.url}/")
    with staging.opened():
        path = staging.open_output(bucket / names[0].partition("/")[0])
        assert path.exists() == there
        fill(path.parent, dict.fromkeys(names, b"new"))
    assert [buckets.read_bytes(bucket / name) for name in names] == [b"new"] * len(names)


def test_a_large_object_is_only_listed(bucket, monkeypatch):
    monkeypatch.setattr(staging, "_SMALL", 3)
    buckets.write_bytes(bucket / "table.csv", b"large")
    with staging.opened():
        assert staging.open_output(bucket / "table.csv").read_bytes() == b""
    assert content_of(bucket.url) == {"table.csv": b"large"}


def test_after_an_error_nothing_is_uploaded(bucket):
    def command():
        with staging.opened():
            path = staging.open_output(bucket / "out")
            path.write_bytes(b"half")
            raise UserError(f"{path}: is wrong")

    with pytest.raises(UserError, match=f"^{bucket.url}/out: is wrong$"):
        command()
    assert content_of(bucket.url) == {}
    assert os.listdir(remote.cache_folder() / "open") == []


def test_an_output_that_cannot_be_uploaded_is_kept(bucket, monkeypatch):
    def failing(*args, **options):
        raise UserError("gs://b: refused")

    monkeypatch.setattr(remote, "upload", failing)
    with pytest.raises(UserError, match="refused; the files are in ") as caught, staging.opened():
        staging.open_output(bucket / "table.csv").write_bytes(b"1")
    kept = str(caught.value).rpartition(" ")[2]
    assert os.listdir(kept) == ["table.csv"]


def test_an_output_that_cannot_be_uploaded_does_not_keep_others_back(bucket, monkeypatch):
    upload, urls = remote.upload, [bucket / f"{name}/table.csv" for name in "abc"]

    def failing(folder, url, *args, **options):
        if not url.endswith("/b"):
            raise UserError(f"{url}: refused")
        return upload(folder, url, *args, **options)

    monkeypatch.setattr(remote, "upload", failing)

    def command():
        with staging.opened():
            for url in urls:
                staging.open_output(url).write_bytes(b"1")

    with pytest.raises(UserError) as caught:
        command()
    assert content_of(bucket.url) == {"b/table.csv": b"1"}
    kept = sorted((remote.cache_folder() / "open").iterdir())
    assert [os.listdir(folder) for folder in kept] == [["table.csv"]] * 2
    for name in "ac":
        assert f"{bucket / name}: refused; the files are in {remote.cache_folder()}" in str(
            caught.value
        )
    assert all(str(folder) in str(caught.value) for folder in kept)


def test_a_local_path_is_its_own(tmp_path):
    with staging.opened():
        assert staging.open_run(tmp_path) == tmp_path
        assert staging.open_output(str(tmp_path / "x")) == tmp_path / "x"
    with pytest.raises(UserError, match=r"^ftp://a/b: ftp:// is not supported"):
        staging.open_run("ftp://a/b")
