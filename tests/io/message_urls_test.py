"""Tests of bloodjax/io/message_urls.py."""

import pytest

from bloodjax.errors import UserError
from bloodjax.io import message_urls


def test_messages_name_the_urls_of_copies(tmp_path):
    message_urls.add(tmp_path / "run", "gs://b/run")
    message_urls.add(tmp_path / "run" / "1", "s3://c/x")
    assert message_urls.with_urls(f"{tmp_path}/run/1/a: is damaged") == "s3://c/x/a: is damaged"
    message_urls.remove(tmp_path / "run" / "1")
    assert message_urls.with_urls(f"{tmp_path}/run/1/a: is damaged") == "gs://b/run/1/a: is damaged"
    message_urls.remove(tmp_path / "run")
    message_urls.remove(tmp_path / "run")
    assert message_urls.with_urls(f"{tmp_path}/run") == f"{tmp_path}/run"


def test_the_error_of_a_body_names_the_url(tmp_path):
    with (
        pytest.raises(UserError, match=r"^gs://b/run: is wrong$"),
        message_urls.shown_as(tmp_path, "gs://b/run"),
    ):
        raise UserError(f"{tmp_path}: is wrong")
    assert message_urls.with_urls(str(tmp_path)) == str(tmp_path)
