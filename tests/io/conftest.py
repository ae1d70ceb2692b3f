"""A bucket behind a proxy, and what is uploaded to a run."""

import pytest

from bloodjax.io import bucket_connection, buckets

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


@pytest.fixture
def sent(monkeypatch):
    """The names of the objects that are uploaded, in order of their completion."""
    names, send = [], buckets.send

    def spy(path, url):
        send(path, url)
        names.append(url.partition("/run/")[2])

    monkeypatch.setattr(buckets, "send", spy)
    return names
