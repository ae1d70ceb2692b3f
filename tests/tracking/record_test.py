import json

import pytest

from bloodjax.tracking.record import Record


def test_a_resumed_run_goes_on_in_the_same_record(tmp_path):
    first = Record(tmp_path / "r.json", "http://a")
    assert first.is_new
    assert first.id == ""
    first.set_id("abc")
    first.add("d1")
    again = Record(tmp_path / "r.json", "http://a")
    assert (again.is_new, again.id, again.key, len(again)) == (False, "abc", first.key, 1)
    assert "d1" in again
    assert "d2" not in again


def test_another_server_gets_a_record_of_its_own(tmp_path):
    Record(tmp_path / "r.json", "http://a").set_id("abc")
    other = Record(tmp_path / "r.json", "http://b")
    assert other.is_new
    assert other.id == ""


@pytest.mark.parametrize("content", ["", "{", "[]", '{"target": "x"}', "null"])
def test_a_damaged_file_counts_as_missing(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_text(content)
    record = Record(path, "x")
    assert record.is_new
    assert json.loads(path.read_text())["key"] == record.key
