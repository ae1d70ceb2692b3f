"""launch/slurm_sweep.sh and launch/sweep_hosts.sh, with stand-ins for sbatch, srun and ssh."""

import shlex

import pytest

SWEEP = ("--", "--config=c.py", "--trials=9", "--workdir=/scratch/a b")
# Runs what it is told to as the host's shell would, with launch/worker.sh as a stand-in.
SSH = 'case "$*" in *"worker.sh status"*) echo "bloodjax-status $(reply "$HOME/states")" ;; esac'


@pytest.fixture
def cluster(machine):
    for command in ("sbatch", "scancel", "scontrol", "srun", "train"):
        machine.standin(command)
    machine.standin("squeue", "echo RUNNING")
    machine.standin("ssh", SSH)
    return machine


def test_submits_an_array_with_a_journal_that_nodes_can_share(cluster, launch):
    workdir = cluster.folder / "a b" / "sweep"
    flags = ("--workers=8", "--time=2:00:00", "--python=train", "--account=lab")
    ended = cluster.run(
        "slurm_sweep.sh", *flags, "--", "--config=c.py", "--trials=9", f"--workdir={workdir}"
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    (call,) = cluster.calls()
    assert " ".join(call[1:9]) == (
        "--job-name=bloodjax-sweep --array=1-8 --nodes=1 --ntasks=1 --cpus-per-task=8"
        " --gpus-per-task=1 --time=2:00:00 --account=lab"
    )
    assert f"--output={workdir}.slurm-%A_%a.log" in call
    start = call.index("launch/slurm.sbatch")
    assert call[start:] == [
        *("launch/slurm.sbatch", "20", "train", "-m", "bloodjax.sweep"),
        *("--config=c.py", "--trials=9", f"--workdir={workdir}"),
        f"--storage=journal:///{workdir}/sweep.log",
    ]
    assert workdir.parent.is_dir()


def test_a_storage_that_is_given_stays(cluster):
    storage = "--storage=postgresql://me@db/sweeps"
    ended = cluster.run("slurm_sweep.sh", "--dry-run", "--gpus=0", *SWEEP, storage)
    words = shlex.split(ended.stdout.splitlines()[-1])
    assert [word for word in words if word.startswith("--storage")] == [storage]
    assert "--gpus" not in ended.stdout


def test_a_task_of_an_array_goes_back_in_the_queue_alone(cluster, launch):
    cluster.standin("srun", "exit 143")
    env = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    job = cluster.start("slurm.sbatch", "20", "train", cwd=launch.parent, env=env)
    job.communicate(timeout=60)
    assert job.returncode == 143
    _, squeue, scontrol = cluster.calls()
    assert squeue == ["squeue", "--noheader", "--jobs=7_3", "--format=%T"]
    assert scontrol == ["scontrol", "requeue", "7_3"]


def test_starts_a_worker_on_each_host_that_has_none(cluster):
    (cluster.folder / "states").write_text("absent\nrunning\n143\n")
    ended = cluster.run("sweep_hosts.sh", "start", "--hosts=a,b,c", "--checkout=/s/x y", *SWEEP)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.splitlines() == ["a: started", "b: is running", "c: started"]
    starts = [call for call in cluster.calls() if "worker.sh start" in call[-1]]
    assert [call[1:4] for call in starts] == [["-o", "BatchMode=yes", host] for host in "ac"]
    assert shlex.split(starts[0][4]) == [
        *("cd", "/s/x y", "&&", "launch/worker.sh", "start", "--state=/tmp/bloodjax-sweep", "--"),
        *(".venv/bin/python", "-m", "bloodjax.sweep", *SWEEP[1:]),
        "--storage=journal:////scratch/a b/sweep.log",
    ]


def test_on_a_pod_each_host_is_alone(cluster):
    flags = ("--hosts=a", "--tpu=2,2,1", "--dry-run")
    ended = cluster.run("sweep_hosts.sh", "start", *flags, *SWEEP)
    words = shlex.split(shlex.split(ended.stdout)[-1])
    env = ["env", "TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1", "TPU_PROCESS_BOUNDS=1,1,1"]
    assert words[words.index("env") :][:3] == env
    assert cluster.calls() == []


def test_status_and_stop_ask_every_host(cluster):
    (cluster.folder / "states").write_text("running\n0\n")
    ended = cluster.run("sweep_hosts.sh", "status", "--hosts=a,b")
    assert ended.stdout == "a: bloodjax-status running\nb: bloodjax-status 0\n"
    ended = cluster.run("sweep_hosts.sh", "stop", "--hosts=a,b")
    assert ended.stdout == "a: stopped\nb: stopped\n"
    assert ["worker.sh stop" in call[-1] for call in cluster.calls()] == [False, False, True, True]


@pytest.mark.parametrize(
    ("action", "flags", "lines"),
    [
        ("start", SWEEP, ["a: started", "c: started"]),
        ("status", (), ["a: bloodjax-status 0", "c: bloodjax-status 0"]),
        ("stop", (), ["a: stopped", "c: stopped"]),
    ],
)
def test_the_other_hosts_go_on_where_one_is_not_reached(cluster, action, flags, lines):
    (cluster.folder / "states").write_text("0\n")
    refuse = 'if [[ $3 == b ]]; then echo "ssh: b: no route" >&2; exit 255; fi\n'
    cluster.standin("ssh", refuse + SSH)
    ended = cluster.run("sweep_hosts.sh", action, "--hosts=a,b,c", *flags)
    assert ended.returncode == 1
    error = f"error: {action} failed on 1 of 3 hosts: b"
    said = [*ended.stdout.splitlines(), *ended.stderr.splitlines()]
    assert sorted(said) == sorted([*lines, "ssh: b: no route", error])
    assert ended.stderr.endswith(error + "\n")


@pytest.mark.parametrize(
    ("script", "flags", "says"),
    [
        ("slurm_sweep.sh", ("--worker=1", *SWEEP), "--worker=1"),
        ("slurm_sweep.sh", ("--workers=0", *SWEEP), "expected at least 1"),
        ("slurm_sweep.sh", SWEEP[:3], "--trials=N and --workdir=DIR"),
        ("slurm_sweep.sh", (*SWEEP[:3], "--workdir=sweep"), "expected an absolute path"),
        ("sweep_hosts.sh", ("start", *SWEEP), "--hosts is missing"),
        ("sweep_hosts.sh", ("begin", "--hosts=a"), "unknown action 'begin'"),
    ],
)
def test_a_mistake_is_one_line(cluster, script, flags, says):
    assert says in cluster.mistake(script, *flags)
    assert cluster.calls() == []
