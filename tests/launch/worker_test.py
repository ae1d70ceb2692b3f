"""launch/worker.sh: one run in the background of a machine, for real."""

import time


def status(machine):
    return machine.run("worker.sh", "status").stdout


def wait_for(machine, wanted):
    for _ in range(200):
        if (found := status(machine)) == f"bloodjax-status {wanted}\n":
            return
        time.sleep(0.1)
    raise AssertionError(f"{found!r}, not {wanted!r}")


def test_a_run_is_absent_then_running_then_stopped_with_its_status(machine):
    machine.standin(
        "train", 'trap "echo saved; exit 143" TERM; echo up; while true; do sleep 0.05; done'
    )
    assert status(machine) == "bloodjax-status absent\n"
    assert machine.run("worker.sh", "start", "--", "train", "a b").returncode == 0
    wait_for(machine, "running")
    log = machine.folder / "bloodjax-run" / "log"
    for _ in range(200):
        if "up" in log.read_text():
            break
        time.sleep(0.1)
    assert machine.run("worker.sh", "stop").returncode == 0
    assert status(machine) == "bloodjax-status 143\n"
    assert log.read_text() == "up\nsaved\n"
    assert machine.calls() == [["train", "a b"]]


def test_a_run_that_ended_tells_how_and_is_not_started_again(machine):
    machine.standin("train", "exit 75")
    machine.run("worker.sh", "start", "--", "train")
    wait_for(machine, "75")
    assert len(machine.calls()) == 1
    assert machine.run("worker.sh", "stop").returncode == 0


def test_a_run_whose_process_is_gone_is_lost(machine):
    (machine.folder / "bloodjax-run").mkdir()
    (machine.folder / "bloodjax-run" / "pid").write_text("999999999\n")
    assert status(machine) == "bloodjax-status lost\n"


def test_dry_run_starts_nothing(machine):
    machine.standin("train")
    printed = machine.run("worker.sh", "start", "--dry-run", "--", "train").stdout
    assert printed.strip().endswith("-- train")
    assert (machine.calls(), status(machine)) == ([], "bloodjax-status absent\n")


def test_a_mistake_is_one_line(machine):
    assert "'go'" in machine.mistake("worker.sh", "go")
    machine.mistake("worker.sh", "start")
