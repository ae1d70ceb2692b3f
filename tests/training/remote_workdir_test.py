"""Tests of bloodjax/training/remote_workdir.py, on emulators of S3 and GCS."""

import concurrent.futures
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from bloodjax import distributed
from bloodjax.errors import UserError
from bloodjax.io import buckets, message_urls, mirror, processes, remote
from bloodjax.training import remote_workdir
from bloodjax.training.remote_workdir import _Lock, local_workdir


@pytest.fixture
def quick(monkeypatch):
    """Locks are renewed ten times a second, and stale after half a second."""
    monkeypatch.setattr(remote_workdir, "_BEAT_SECONDS", 0.1)
    monkeypatch.setattr(remote_workdir, "_STALE_SECONDS", 1.0)
    monkeypatch.setattr(remote_workdir, "_POLL_SECONDS", 0.1)


def contend(url, n):
    """Locks `url` in n threads at once; returns how many hold it, and the others' errors."""
    together, done = threading.Barrier(n), threading.Event()
    holding, errors = [], []

    def one(_):
        together.wait()
        try:
            with _Lock(url) as lock:
                holding.append(lock)
                done.wait(60)
        except UserError as error:
            errors.append(str(error))
        if len(errors) == n - 1:
            done.set()

    with concurrent.futures.ThreadPoolExecutor(n) as pool:
        list(pool.map(one, range(n)))
    return len(holding), errors


def test_one_of_several_gets_the_lock(bucket, quick):
    held, errors = contend(bucket / "run", 4)
    assert held == 1
    line = (
        f"--workdir={bucket / 'run'}: process {os.getpid()} on {os.uname().nodename} is training "
        "here; expected one process at a time, or another --workdir"
    )
    assert errors == [line] * 3
    assert buckets.stat(bucket / "run/lock") is None


def test_one_of_several_takes_over_a_stale_lock(bucket, quick, caplog):
    buckets.write_bytes(bucket / "run/lock", json.dumps({"holder": "process 1 on gone"}).encode())
    started = time.monotonic()
    with caplog.at_level("INFO", "bloodjax"):
        held, errors = contend(bucket / "run", 4)
    assert time.monotonic() - started >= 1.0
    assert (held, len(errors)) == (1, 3)
    took = [line for line in caplog.messages if "took over the lock of process 1 on gone" in line]
    assert len(took) == 1


def test_a_lock_that_is_renewed_is_not_taken_over(bucket, quick):
    with _Lock(bucket / "run") as lock:
        time.sleep(1.3)  # longer than a lock may be stale
        with pytest.raises(UserError, match="is training here"), _Lock(bucket / "run"):
            pass
        lock.check()
    with _Lock(bucket / "run"):
        pass


def test_a_holder_that_was_away_for_too_long_does_not_write(bucket, quick, monkeypatch):
    monkeypatch.setattr(_Lock, "_renew_regularly", lambda self: None)  # as a stopped process
    with _Lock(bucket / "run") as first:
        with _Lock(bucket / "run") as second:
            time.sleep(0.6)
            with pytest.raises(UserError, match="has taken over the lock, which this process did"):
                first.check()
            second.check()
        assert buckets.stat(bucket / "run/lock") is None
    assert first._lost


def test_the_lock_of_a_dead_process_of_this_machine_is_free(bucket):
    if processes.identity(os.getpid()) is None:
        pytest.skip("only Linux tells which processes of this machine are alive")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        content = {"holder": "process 7 here", "process": processes.identity(child.pid)}
    buckets.write_bytes(bucket / "run/lock", json.dumps(content).encode())
    started = time.monotonic()
    with _Lock(bucket / "run"):
        assert time.monotonic() - started < 30


def test_a_renewal_whose_answer_was_lost_is_no_takeover(bucket, monkeypatch):
    monkeypatch.setattr(_Lock, "_renew_regularly", lambda self: None)
    replace = buckets.replace

    def without_answer(*args):
        replace(*args)
        raise UserError("gs://b: no answer")

    with _Lock(bucket / "run") as lock:
        with monkeypatch.context() as patch:
            patch.setattr(buckets, "replace", without_answer)
            with pytest.raises(UserError, match="no answer"):
                lock._renew()
        lock._renew()
        lock.check()
        with monkeypatch.context() as patch:
            patch.setattr(buckets, "replace", without_answer)
            with pytest.raises(UserError, match="no answer"):
                lock._renew()
    assert buckets.stat(bucket / "run/lock") is None  # it is freed at the end


@pytest.fixture
def outage(monkeypatch):
    """Makes functions of a module fail once each."""
    monkeypatch.setattr(mirror, "_RETRY_SECONDS", 0.01)

    def start(*functions):
        for module, name in functions:
            left, original = ["once"], getattr(module, name)

            def failing(*args, left=left, original=original, **options):
                if left:
                    raise UserError(f"gs://b: {left.pop()}")
                return original(*args, **options)

            monkeypatch.setattr(module, name, failing)

    return start


def test_an_outage_in_which_the_lock_becomes_old_is_waited_for(bucket, monkeypatch, outage):
    monkeypatch.setattr(_Lock, "_renew_regularly", lambda self: None)
    with local_workdir(bucket / "run") as folder:
        (folder / "a").write_bytes(b"1")
        monkeypatch.setattr(remote_workdir, "_STALE_SECONDS", 0.0)  # it is renewed at each check
        outage((buckets, "replace"), (remote, "upload"))
        distributed.publish()
        assert buckets.read_bytes(bucket / "run/a") == b"1"


def test_an_upload_is_not_repeated_once_another_run_has_the_lock(bucket, monkeypatch):
    monkeypatch.setattr(_Lock, "_renew_regularly", lambda self: None)
    monkeypatch.setattr(mirror, "_RETRY_SECONDS", 0.01)
    attempts = []

    def failing(*args, **options):
        attempts.append(args)
        monkeypatch.setattr(remote_workdir, "_STALE_SECONDS", 0.0)
        buckets.write_bytes(bucket / "run/lock", b'{"holder": "process 2 on other"}')
        raise UserError("gs://b: refused")

    def train():
        with local_workdir(bucket / "run") as folder:
            (folder / "a").write_bytes(b"1")
            monkeypatch.setattr(remote, "upload", failing)
            distributed.publish()

    with pytest.raises(UserError, match="process 2 on other has taken over the lock"):
        train()
    assert len(attempts) == 1


def test_another_process_waits_for_a_bucket_that_fails(bucket, monkeypatch, tmp_path, outage):
    buckets.write_bytes(bucket / "run/a", b"1")
    with remote_workdir._copied_by_other(bucket / "run", tmp_path / "run"):
        outage((buckets, "list_files"))
        distributed.runtime._pull()
    assert (tmp_path / "run/a").read_bytes() == b"1"


class Peers:
    """Two processes of a run in threads; `exchange` fails where another one has failed."""

    def __init__(self):
        self.count, self._local = 2, threading.local()
        self._together = threading.Barrier(2)

    @property
    def process(self):
        return self._local.number

    def exchange(self, value):
        self._together.wait(60)
        return [value] * 2

    def run(self, body):
        """Returns the error of each process, or None."""

        def one(number):
            self._local.number = number
            try:
                body()
            except Exception as error:
                self._together.abort()
                return error

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(one, range(2)))


def test_a_second_start_leaves_the_folders_of_the_first(bucket, monkeypatch, quick):
    url, peers, folders = bucket / "run", Peers(), set()
    for name, value in (("_peers", peers), ("_push", None), ("_pull", None)):
        monkeypatch.setattr(distributed.runtime, name, value)

    def start():
        with local_workdir(url) as folder:
            folders.add(folder)

    assert peers.run(start) == [None, None]
    assert len(folders) == 2
    for folder in folders:  # as if the first run went on
        folder.mkdir(parents=True)
        (folder / "own").touch()
    with _Lock(url):
        errors = peers.run(start)
    assert "is training here" in str(errors[0])
    assert isinstance(errors[1], threading.BrokenBarrierError)
    assert [os.listdir(folder) for folder in folders] == [["own"]] * 2


def test_a_local_folder_is_its_own(tmp_path):
    with local_workdir(tmp_path / "run") as folder:
        assert folder == tmp_path / "run"
        distributed.publish()
    assert not folder.exists()


def test_what_a_run_writes_is_uploaded_when_it_publishes_and_at_the_end(bucket):
    buckets.write_bytes(bucket / "run/before", b"0")
    with local_workdir(bucket / "run") as folder:
        assert (folder / "before").read_bytes() == b"0"
        assert message_urls.with_urls(f"{folder}: x") == f"{bucket.url}/run: x"
        (folder / "a").write_bytes(b"1")
        distributed.publish()
        assert buckets.read_bytes(bucket / "run/a") == b"1"
        (folder / "before").unlink()
    assert buckets.list_files(f"{bucket.url}/run/").keys() == {"a"}
    assert not folder.exists()


def test_a_run_that_fails_uploads_what_it_has_and_frees_the_lock(bucket):
    def train():
        with local_workdir(bucket / "run") as folder:
            (folder / "a").write_bytes(b"1")
            raise UserError(f"{folder}/config.json: is wrong")

    with pytest.raises(UserError, match=f"^{bucket.url}/run/config.json: is wrong$"):
        train()
    assert buckets.list_files(f"{bucket.url}/run/").keys() == {"a"}


def test_a_local_folder_that_is_being_deleted_is_kept_in_the_bucket(bucket):
    buckets.write_bytes(bucket / "run/a", b"1")
    buckets.write_bytes(bucket / "run/b", b"2")

    def train():
        with local_workdir(bucket / "run") as folder:
            (folder / "a").unlink()
            (folder / "a").read_bytes()

    with pytest.raises(FileNotFoundError):
        train()
    assert buckets.list_files(f"{bucket.url}/run/").keys() == {"a", "b"}


def test_leftovers_of_a_killed_run_do_not_count(bucket):
    with local_workdir(bucket / "run") as folder:
        (folder / "a").write_bytes(b"1")
        place = folder
    place.mkdir(parents=True)
    (place / "never_uploaded").touch()
    with local_workdir(bucket / "run") as folder:
        assert os.listdir(folder) == ["a"]


def test_without_a_bucket_nothing_starts(make_bucket):
    make_bucket("s3")
    with (
        pytest.raises(UserError, match=r"^s3://no-such-bucket/run/lock: no bucket no-such-bucket"),
        local_workdir("s3://no-such-bucket/run"),
    ):
        pass
