"""Tests of bloodjax/io/mirror.py, on emulators of S3 and GCS."""

import os
import shutil

import pytest

from bloodjax.errors import UserError
from bloodjax.io import bucket_urls, buckets, mirror, remote
from bloodjax.io.files import atomic_write

STEP = "checkpoints/7"
RUN = {
    "metrics.jsonl": b"{}\n",
    f"{STEP}/state/d/1": b"state",
    f"{STEP}/progress/metadata": b"{}",
    f"{STEP}/checksums.json": b"sums",
    "config.json": b"{}",
    "report/index.html": b"report",
}


def fill(folder, content=RUN):
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def content_of(url):
    names = buckets.list_files(f"{url}/")
    return {name: buckets.read_bytes(bucket_urls.join(url, name)) for name in names}


@pytest.fixture
def copy(bucket, tmp_path):
    """A mirror of an empty local folder."""
    (tmp_path / "run").mkdir()
    return mirror.Mirror(tmp_path / "run", bucket / "run")


@pytest.fixture
def sent(monkeypatch):
    """The names of the objects that are uploaded, in order of their completion."""
    names, send = [], buckets.send

    def spy(path, url):
        send(path, url)
        names.append(url.partition("/run/")[2])

    monkeypatch.setattr(buckets, "send", spy)
    return names


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(mirror, "_RETRY_SECONDS", 0.01)


def test_a_push_uploads_what_has_changed_and_what_makes_it_valid_last(copy, sent):
    fill(copy.folder)
    copy.push()
    assert content_of(copy.url) == RUN
    assert sent[-3:] == [f"{STEP}/checksums.json", "config.json", "report/index.html"]
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


def test_an_output_with_the_name_of_an_incomplete_file_is_refused(bucket):
    with pytest.raises(UserError, match=r"/cells\.tmp: names that end in \.tmp are those of files"):
        mirror.open_output(bucket / "cells.tmp")


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


def test_a_run_is_read_from_a_copy_and_added_to(bucket, sent, tmp_path):
    original = mirror.Mirror(tmp_path / "none", bucket / "run")
    remote.upload(fill(tmp_path / "original"), original.url)
    buckets.write_bytes(f"{original.url}/lock", b"held")
    sent.clear()
    with mirror.opened():
        folder = mirror.open_run(f"{original.url}/")
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert found == RUN.keys()
        assert mirror.shown(f"{folder}: read") == f"{original.url}: read"
        atomic_write(folder / "config.json", "{1}")
        fill(folder, {"evaluate/test/metrics.json": b"{}", "compiled/program": b"for here"})
    assert sorted(sent) == ["config.json", "evaluate/test/metrics.json"]
    assert not folder.parent.exists()
    assert mirror.shown(str(folder)) == str(folder)
    # What the cache has is not changed by what was written to the copy.
    (cached,) = (remote.cache_folder() / "remote").rglob("config.json")
    assert cached.read_bytes() == b"{}"


@pytest.mark.parametrize("times", [1, 2])
def test_a_cache_that_another_command_updates_is_read_again(bucket, tmp_path, monkeypatch, times):
    remote.upload(fill(tmp_path / "original"), bucket / "run")
    link, removed = mirror._link, []

    def removing(source, target):
        if source.endswith("config.json") and len(removed) < times:
            removed.append(source)
            os.unlink(source)
        link(source, target)

    monkeypatch.setattr(mirror, "_link", removing)
    if times == 1:
        mirror.copy_into(bucket / "run", tmp_path / "copy")
        assert all((tmp_path / "copy" / name).read_bytes() == data for name, data in RUN.items())
        return
    with pytest.raises(UserError, match=r"/run: its copy in the cache cannot be read \(.*No such"):
        mirror.copy_into(bucket / "run", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_run_that_is_not_there(bucket):
    buckets.write_bytes(bucket / "run/lock", b"held")
    with pytest.raises(UserError, match=f"^{bucket.url}/run: no such folder in the bucket$"):
        mirror.open_run(bucket / "run")


@pytest.mark.parametrize("name", ["table.csv", "folder"])
def test_an_output_is_uploaded_with_what_is_beside_it(bucket, name):
    with mirror.opened():
        path = mirror.open_output(bucket / f"here/{name}")
        assert not path.exists()
        content = {name: b"1"} if "." in name else {f"{name}/a": b"1", f"{name}/b/c": b"2"}
        fill(path.parent, content | {f"{name}.json": b"beside"})
    assert content_of(bucket / "here") == content | {f"{name}.json": b"beside"}


def test_an_output_shows_what_is_there(bucket, monkeypatch, sent):
    monkeypatch.setattr(mirror, "_SMALL", 3)
    fill_in = {"run/out/small": b"one", "run/out/large": b"long", "run/beside": b"b"}
    for name, data in fill_in.items():
        buckets.write_bytes(bucket / name, data)
    with mirror.opened():
        path = mirror.open_output(bucket / "run/out")
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
    with mirror.opened():
        path = mirror.open_output(bucket / names[0].partition("/")[0])
        assert path.exists() == there
        fill(path.parent, dict.fromkeys(names, b"new"))
    assert [buckets.read_bytes(bucket / name) for name in names] == [b"new"] * len(names)


def test_a_large_object_is_only_listed(bucket, monkeypatch):
    monkeypatch.setattr(mirror, "_SMALL", 3)
    buckets.write_bytes(bucket / "table.csv", b"large")
    with mirror.opened():
        assert mirror.open_output(bucket / "table.csv").read_bytes() == b""
    assert content_of(bucket.url) == {"table.csv": b"large"}


def test_after_an_error_nothing_is_uploaded(bucket):
    def command():
        with mirror.opened():
            path = mirror.open_output(bucket / "out")
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
    with pytest.raises(UserError, match="refused; the files are in ") as caught, mirror.opened():
        mirror.open_output(bucket / "table.csv").write_bytes(b"1")
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
        with mirror.opened():
            for url in urls:
                mirror.open_output(url).write_bytes(b"1")

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
    with mirror.opened():
        assert mirror.open_run(tmp_path) == tmp_path
        assert mirror.open_output(str(tmp_path / "x")) == tmp_path / "x"
    with pytest.raises(UserError, match=r"^ftp://a/b: ftp:// is not supported"):
        mirror.open_run("ftp://a/b")
