"""Tests of bloodjax/io/bucket_connection.py, on emulators of S3 and GCS."""

import pytest

from bloodjax.io import bucket_connection, buckets

from ..emulators import environment, refusing
from .error_messages import error_of


def test_no_credentials_is_one_line(make_bucket, monkeypatch):
    bucket = make_bucket("s3")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert error_of(buckets.list_files, bucket / "x") == (
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
        message = error_of(buckets.list_files, f"{scheme}://b/x")
    expected = "no valid credentials" if status == 401 else "refuses it"
    assert expected in message, message
    assert message.startswith(f"{scheme}://b/x: ")


def test_a_bucket_that_drops_every_connection_is_one_line(proxy):
    bucket, between = proxy
    url = bucket / "cells.zip"
    between.drops = 10**6
    message = error_of(buckets.list_files, url)
    assert message.startswith(f"{url}: the connection to {between.address} failed (")
    assert message.endswith(", several times")
    assert between.connections > 1


def test_a_slow_bucket_is_waited_for(proxy):
    bucket, between = proxy
    between.delay = 0.2
    buckets.write_bytes(bucket / "x", b"content")
    assert buckets.read_bytes(bucket / "x") == b"content"


def test_a_bucket_that_does_not_answer_is_one_line(proxy, monkeypatch):
    bucket, between = proxy
    monkeypatch.setattr(bucket_connection, "TIMEOUT", 0.05)
    between.delay = 5.0
    assert error_of(buckets.list_files, bucket / "x") == (
        f"{bucket / 'x'}: no answer from {between.address} for 0.05 s, several times; try again"
    )


def test_an_endpoint_that_nobody_listens_at_is_one_line(make_bucket, monkeypatch):
    bucket = make_bucket("s3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(bucket_connection, "TRIES", 1)
    assert error_of(buckets.list_files, bucket / "x").startswith(
        f"{bucket / 'x'}: the connection to http://127.0.0.1:9 failed ("
    )


def test_without_the_library_is_one_line(monkeypatch):
    def missing(scheme):
        raise ImportError("No module named 's3fs'")

    monkeypatch.setattr(bucket_connection, "_file_system_class", missing)
    monkeypatch.setenv("AWS_PROFILE", "another connection")
    assert error_of(buckets.list_files, "s3://b/x") == (
        "s3://b/x: buckets need the extra [remote]: pip install 'bloodjax[remote]' "
        "(No module named 's3fs')"
    )
