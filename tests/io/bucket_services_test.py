"""Tests of bloodjax/io/bucket_services.py."""

import pytest

from bloodjax.io.bucket_services import S3, Gcs, ObjectInfo


def test_the_info_is_what_a_listing_states():
    md5 = "9a0364b9e99bb480dd25e1f0284c8555"
    entry = {"size": "7", "generation": 1234, "md5Hash": "mgNkuembtIDdJeHwKEyFVQ=="}
    assert Gcs(None).info(entry) == ObjectInfo(7, "1234", md5)
    assert Gcs(None).info({"size": 7, "generation": 5}) == ObjectInfo(7, "5", "")
    assert S3(None).info({"size": 7, "ETag": f'"{md5}"'}) == ObjectInfo(7, md5, md5)
    # The ETag of an object that was uploaded in parts is no MD5.
    assert S3(None).info({"size": 7, "ETag": f'"{md5}-3"'}) == ObjectInfo(7, f"{md5}-3", "")


@pytest.mark.parametrize(
    ("head", "states"),
    [
        ({}, True),
        ({"ServerSideEncryption": "AES256"}, True),
        ({"ServerSideEncryption": "aws:kms"}, False),
        ({"SSECustomerAlgorithm": "AES256"}, False),
    ],
)
def test_s3_states_no_md5_of_what_a_key_of_the_user_encrypts(head, states):
    class System:
        def call_s3(self, *args, **kwargs):
            return head

    assert S3(System()).states_md5("bucket", "name") == states


def test_large_objects_of_gcs_are_downloaded_in_several_requests():
    assert Gcs(None).download_options(1000) == {"headers": {}}
    assert Gcs(None).download_options(2**30) == {}
