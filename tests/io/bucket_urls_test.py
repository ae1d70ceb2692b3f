"""Tests of bloodjax/io/bucket_urls.py."""

import os

from bloodjax.io import bucket_urls

from .error_messages import error_of


def test_paths_of_buckets_are_recognised():
    assert all(map(bucket_urls.is_remote, ("gs://b", "gcs://b/x", "s3://b/x/")))
    assert not any(map(bucket_urls.is_remote, ("/s3", "s3:/b", "hf:a/b", "tfds:x", "https://b/x")))
    assert bucket_urls.normalised("gcs://b/x/") == "gs://b/x"
    assert bucket_urls.absolute("gcs://b/x/") == "gs://b/x"
    assert bucket_urls.absolute("x") == os.path.abspath("x")
    bucket_urls.check("some/where")
    assert error_of(bucket_urls.check, "ftp://b/x") == (
        "ftp://b/x: ftp:// is not supported, expected a local path, gs://BUCKET/NAME or "
        "s3://BUCKET/NAME"
    )


def test_a_url_is_split_and_joined():
    assert bucket_urls.split("gcs://b/x/y.png") == ("gs", "b", "x/y.png")
    assert bucket_urls.split("s3://b") == ("s3", "b", "")
    assert bucket_urls.join("s3://b/x/", "", "y", "z") == "s3://b/x/y/z"
    assert error_of(bucket_urls.split, "s3:///x").startswith("s3:///x: names no bucket")
    assert error_of(bucket_urls.split_object, "s3://b/") == (
        "s3://b/: names a bucket, expected s3://b/NAME"
    )


def test_the_endpoint_is_that_of_the_environment(monkeypatch):
    names = ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert bucket_urls.endpoint("gcs://b") == "storage.googleapis.com"
    assert bucket_urls.endpoint("s3://b") == "Amazon S3"
    for name in names:
        monkeypatch.setenv(name, f"http://{name}")
    assert bucket_urls.endpoint("gs://b") == "http://STORAGE_EMULATOR_HOST"
    assert bucket_urls.endpoint("s3://b") == "http://AWS_ENDPOINT_URL_S3"
