"""Tests of bloodjax/io/remote.py."""

import pytest

from bloodjax.errors import UserError
from bloodjax.io import remote


def test_what_is_written_is_read(bucket):
    url = bucket / "a/b.txt"
    assert remote.stat(url) is None
    tag = remote.write_bytes(url, b"one")
    assert remote.read_bytes(url) == b"one"
    assert remote.stat(url).tag == tag
