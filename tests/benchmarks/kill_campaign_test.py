import pytest

from benchmarks import kill_campaign
from benchmarks.kill_campaign import Run, Start

SHORT = (
    *(flag for flag in kill_campaign.CONFIG if ".epochs" not in flag),
    *("--config.phases.head.epochs=1", "--config.phases.finetune.epochs=2"),
)


@pytest.mark.slow
def test_killed_runs_end_like_the_one_left_alone(tmp_path):
    found = kill_campaign.campaign({"SIGKILL": 1, "SIGTERM": 1}, 0, tmp_path, SHORT)
    assert found["faults"] == []
    assert found["signals"] == {"SIGKILL": 1, "SIGTERM": 1}
    assert found["runs"] >= 1


def faults(tmp_path, *starts):
    run = Run(tmp_path, ())
    run.starts = list(starts)
    return run.faults()


def start(signal, began, step, saves, last="step"):
    return Start(signal, -9, began, step, saves, last, "")


def test_what_a_run_may_lose(tmp_path):
    killed = start("SIGKILL", 0, 9, [3, 6, 9])
    assert faults(tmp_path, killed, start(None, 6, 20, [])) == []
    assert faults(tmp_path, killed, start(None, 9, 20, [])) == []
    assert faults(tmp_path, killed, start(None, 3, 20, [])) == [
        "SIGKILL at step 9: resumed from 3, not 6"
    ]
    assert faults(tmp_path, start("SIGKILL", 0, 2, [2]), start(None, 0, 20, [])) == []
    in_set_up = start("SIGKILL", 0, 0, [], last="")
    assert faults(tmp_path, killed, in_set_up) == []
    assert faults(tmp_path, killed, in_set_up, start(None, 6, 20, [])) == []
    assert len(faults(tmp_path, killed, in_set_up, start(None, 3, 20, []))) == 1
    terminated = start("SIGTERM", 6, 9, [9])
    assert faults(tmp_path, terminated, start(None, 9, 20, [])) == []
    assert len(faults(tmp_path, terminated, start(None, 8, 20, []))) == 1
