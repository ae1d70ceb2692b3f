import dataclasses

import pytest

from benchmarks import process_loss
from benchmarks.process_loss import End


@pytest.mark.full
def test_who_is_killed_is_named_by_us():
    other, killed = process_loss.measure("bloodjax", "killed", 1, timeout=10, limit=60)
    assert killed.status == -9
    assert other.status == 75
    assert other.names == ["id", "host"]
    assert other.seconds < 10


@pytest.mark.full
def test_jax_alone_aborts_without_the_host():
    other, killed = process_loss.measure("jax", "killed", 1, timeout=5, limit=60)
    assert (killed.status, other.status) == (-9, -6)
    assert "host" not in other.names


def test_the_table_has_a_row_for_each_case():
    ends = {
        "jax": [End(-6, 10.31, ["id"]), End(-9, 0.0, [])],
        "bloodjax": [End(75, 1.04, ["id", "host"]), End(-9, 0.0, [])],
    }
    runs_on = {"jax": [End(None, 60.0, [])] * 2, "bloodjax": [End(75, 11.0, ["id", "host"])] * 2}
    cases = {"1 killed": ends, "0 waits": runs_on}
    text = process_loss.table(
        {
            case: {name: [dataclasses.asdict(end) for end in found] for name, found in both.items()}
            for case, both in cases.items()
        }
    )
    lines = text.splitlines()
    assert lines[2] == (
        "| 1 killed | -9 after 0.0 s | -6 after 10.3 s | id "
        "| -9 after 0.0 s | 75 after 1.0 s | id and host |"
    )
    assert lines[3] == (
        "| 0 waits | runs on | runs on | no | 75 after 11.0 s | 75 after 11.0 s | id and host |"
    )
