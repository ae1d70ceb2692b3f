"""Tests of bloodjax/tuning/locks.py."""

import errno
import fcntl
import threading

import pytest

from bloodjax.errors import UserError
from bloodjax.tuning import locks


def test_only_one_has_a_claim_until_it_is_closed(tmp_path):
    first = locks.claim(tmp_path / "worker")
    assert first is not None
    assert locks.claim(tmp_path / "worker") is None
    first.close()
    with locks.claim(tmp_path / "worker") as second:
        assert second is not None


def test_a_second_one_waits_for_the_lock(tmp_path):
    order = []

    def second():
        with locks.held(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    with locks.held(tmp_path / "lock"):
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match="No locks available; expected a folder with file locks"):
        locks.claim(tmp_path / "worker")
