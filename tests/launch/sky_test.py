"""launch/sky.sh with a stand-in sky; what sky.yaml asks for, and what its run section does."""

import shlex
import subprocess

import pytest
import yaml

RUN = ("--", "--config=configs/resnet50.py", "--workdir=s3://cells/a b")


@pytest.fixture
def task(launch):
    return yaml.safe_load((launch / "sky.yaml").read_text())


def test_launch_submits_a_managed_job(machine, task):
    machine.standin("sky")
    flags = ("--name=cells", "--gpus=H100:8", "--nodes=2", "--restarts=3")
    assert machine.run("sky.sh", "launch", *flags, *RUN).returncode == 0
    (call,) = machine.calls()
    start = "sky jobs launch launch/sky.yaml --yes --name=cells --gpus=H100:8 --num-nodes=2"
    assert call[:8] == shlex.split(start)
    envs = dict(word.removeprefix("--env=").split("=", 1) for word in call[8:])
    assert envs.keys() == task["envs"].keys()
    assert envs["RESTARTS"] == "3"
    assert shlex.split(envs["ARGUMENTS"]) == list(RUN[1:])


@pytest.mark.parametrize(
    ("action", "call"),
    [
        ("status", "jobs queue"),
        ("logs", "jobs logs --name=bloodjax"),
        ("cancel", "jobs cancel --yes --name=bloodjax"),
    ],
)
def test_each_action_is_one_call(machine, action, call):
    machine.standin("sky")
    assert machine.run("sky.sh", action).returncode == 0
    assert machine.calls() == [["sky", *call.split()]]


@pytest.mark.parametrize("action", ["launch", "status", "logs", "cancel"])
def test_dry_run_prints_and_calls_nothing(machine, action):
    machine.standin("sky")
    ended = machine.run("sky.sh", action, "--dry-run", *RUN)
    assert (ended.returncode, ended.stderr, machine.calls()) == (0, "", [])
    assert ended.stdout.startswith("sky jobs ")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "''"),
        (("launch", "--", "--config=c", "--workdir=/w"), "expected --workdir=gs://BUCKET/NAME"),
        (("launch",), "--workdir=DIR"),
        (("logs", "--follow"), "--follow"),
    ],
)
def test_a_mistake_is_one_line(machine, flags, says):
    machine.standin("sky")
    assert says in machine.mistake("sky.sh", *flags)


def test_without_sky_it_says_so(machine):
    assert "sky is not installed" in machine.mistake("sky.sh", "status")


def test_spot_machines_are_recovered_and_the_run_outlives_them(task):
    resources = task["resources"]
    assert resources["use_spot"] is True
    # The rest is launch/restart.sh's, which knows a mistake from a crash.
    assert resources["job_recovery"] == {
        "strategy": "EAGER_NEXT_REGION",
        "max_restarts_on_errors": 0,
    }
    assert "file_mounts" not in task  # the run reads and writes buckets itself
    assert task["workdir"] == "."


@pytest.mark.parametrize(("nodes", "status"), [(1, 0), (2, 0), (1, 2)])
def test_the_run_section_starts_the_training(machine, launch, task, nodes, status):
    machine.standin("python", f"exit {status}")
    (machine.folder / "venv").mkdir()
    (machine.folder / "venv" / "bin").symlink_to(machine.bin)
    env = machine.env | {
        "ARGUMENTS": shlex.join(RUN[1:]),
        "RESTARTS": "0",
        "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "1",
    }
    ended = subprocess.run(
        ["bash", "-c", task["run"]], env=env, cwd=launch.parent, timeout=60, check=False
    )
    assert ended.returncode == status
    (call,) = machine.calls()
    others = ["--coordinator=10.0.0.1:8476", "--num_processes=2", "--process_id=1"]
    assert call == ["python", "-m", "bloodjax.main", *RUN[1:], *(others if nodes > 1 else [])]
