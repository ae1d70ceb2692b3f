"""A bucket behind a proxy."""

import pytest

from bloodjax.io import bucket_connection

from ..emulators import Proxy


@pytest.fixture
def proxy(make_bucket, monkeypatch):
    """A bucket of S3 behind a proxy; an answer may take half a second."""
    bucket = make_bucket("s3")
    between = Proxy(bucket.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", between.address)
    monkeypatch.setattr(bucket_connection, "TIMEOUT", 0.5)
    monkeypatch.setattr(bucket_connection, "TRIES", 1)
    yield bucket, between
    between.close()
