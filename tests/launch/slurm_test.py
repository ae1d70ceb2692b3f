"""launch/slurm.sh with a stand-in sbatch, and the job it submits with a stand-in srun."""

import signal

import pytest

RUN = ("--", "--config=configs/resnet50.py", "--workdir=/scratch/a b")
ALWAYS = "--requeue --signal=B:TERM@120 --open-mode=append"


@pytest.fixture
def cluster(machine, launch):
    """A login node and a compute node in one: sbatch, srun, squeue, scontrol."""
    for command in ("sbatch", "scancel", "scontrol", "srun", "train"):
        machine.standin(command)
    machine.standin("squeue", "echo RUNNING")
    machine.env["SLURM_JOB_ID"] = "7"
    return machine


def job(cluster, launch, *arguments, **env):
    return cluster.start("slurm.sbatch", *arguments, cwd=launch.parent, env=env)


def test_submits_one_process_for_each_gpu(cluster, launch):
    workdir = cluster.folder / "a b" / "run"
    flags = (
        "--nodes=2",
        "--gpus=4",
        "--time=2:00:00",
        "--account=lab",
        "--python=train",
        "--restarts=5",
    )
    ended = cluster.run("slurm.sh", *flags, "--", "--config=c.py", f"--workdir={workdir}")
    assert (ended.returncode, ended.stderr) == (0, "")
    (call,) = cluster.calls()
    assert " ".join(call[1:9]) == (
        "--job-name=bloodjax --nodes=2 --ntasks-per-node=4 --cpus-per-task=8 --gpus-per-node=4"
        " --time=2:00:00 --account=lab --requeue"
    )
    assert call[9:13] == [
        "--signal=B:TERM@120",
        "--open-mode=append",
        f"--output={workdir}.slurm-%j.log",
        f"--chdir={launch.parent}",
    ]
    assert call[13:16] == ["launch/slurm.sbatch", "5", "train"]
    assert call[16:] == ["-m", "bloodjax.main", "--config=c.py", f"--workdir={workdir}"]
    assert workdir.parent.is_dir()  # SLURM makes none for its log
    assert not workdir.exists()


def test_the_log_of_a_run_in_a_bucket_is_in_the_checkout(cluster, launch):
    run = ("--", "--config=c.py", "--workdir=gs://cells/runs/one")
    ended = cluster.run("slurm.sh", "--dry-run", *run)
    assert f"--output={launch.parent}/one.slurm-%j.log" in ended.stdout


def test_a_workdir_with_a_sign_that_sbatch_replaces(cluster):
    workdir = cluster.folder / "5%" / "run"
    ended = cluster.run("slurm.sh", "--python=train", "--", "--config=c.py", f"--workdir={workdir}")
    assert (ended.returncode, ended.stderr) == (0, "")
    (call,) = cluster.calls()
    assert f"--output={cluster.folder}/5%%/run.slurm-%j.log" in call
    assert call[-1] == f"--workdir={workdir}"
    assert workdir.parent.is_dir()


def test_without_gpus_one_process_for_each_node(cluster):
    ended = cluster.run("slurm.sh", "--gpus=0", "--nodes=3", "--dry-run", *RUN)
    assert "--nodes=3 --ntasks-per-node=1 --cpus-per-task=8 --time=" in ended.stdout
    assert "--gpus" not in ended.stdout


def test_dry_run_prints_and_calls_nothing(cluster):
    ended = cluster.run("slurm.sh", "--dry-run", *RUN)
    assert (ended.returncode, ended.stderr, cluster.calls()) == (0, "", [])
    assert ended.stdout.startswith("mkdir -p /scratch\nsbatch ")
    assert ALWAYS in ended.stdout


def test_the_limit_is_handed_on_as_term_and_the_job_goes_back_in_the_queue(cluster, launch):
    # As SLURM does: SIGTERM to srun itself would kill the tasks.
    cluster.standin("scancel", 'kill -TERM "$(cat "$HOME/task")"')
    saves = 'echo $$ >"$HOME/task"; trap "echo saved; exit 143" TERM; echo up'
    cluster.standin("srun", saves + "; while true; do sleep 0.05; done")
    process = job(cluster, launch, "20", "train", "a b", SLURM_CPUS_PER_TASK="8")
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[0] == "saved\n"
    assert process.returncode == 143
    srun, scancel, squeue, scontrol = cluster.calls()
    assert scancel == ["scancel", "--signal=TERM", "7"]
    assert srun[-2:] == ["train", "a b"]
    assert " ".join(srun[:-2]) == "srun --kill-on-bad-exit=0 --wait=0 --cpus-per-task=8"
    assert squeue == ["squeue", "--noheader", "--jobs=7", "--format=%T"]
    assert scontrol == ["scontrol", "requeue", "7"]


@pytest.mark.parametrize(
    ("status", "requeued"),
    [(0, False), (2, False), (75, True), (143, True), (130, True), (1, True), (137, True)],
)
def test_all_but_done_and_a_mistake_goes_back_in_the_queue(cluster, launch, status, requeued):
    cluster.standin("srun", f"exit {status}")
    process = job(cluster, launch, "20", "train")
    process.communicate(timeout=60)
    assert process.returncode == status
    assert (cluster.calls()[-1] == ["scontrol", "requeue", "7"]) == requeued


@pytest.mark.parametrize(("before", "requeued"), [("2", True), ("3", False), ("4", False)])
def test_it_goes_back_no_more_often_than_asked(cluster, launch, before, requeued):
    cluster.standin("srun", "exit 75")
    _, err = job(cluster, launch, "3", "train", SLURM_RESTART_COUNT=before).communicate(timeout=60)
    assert (["scontrol", "requeue", "7"] in cluster.calls()) == requeued
    assert ("--restarts=3" in err) != requeued


@pytest.mark.parametrize("state", ["COMPLETING", "CANCELLED", ""])
def test_a_cancelled_job_stays_cancelled(cluster, launch, state):
    cluster.standin("srun", "exit 143")
    cluster.standin("squeue", f"echo {state}")
    process = job(cluster, launch, "20", "train")
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not [call for call in cluster.calls() if call[0] == "scontrol"]


@pytest.mark.parametrize(("failures", "requeued"), [(2, True), (5, False)])
def test_squeue_may_fail_a_few_times(cluster, launch, failures, requeued):
    cluster.standin("srun", "exit 143")
    (cluster.folder / "answers").write_text("false\n" * failures + "echo RUNNING\n")
    cluster.standin("squeue", '$(reply "$HOME/answers")')
    cluster.standin("sleep", "true")
    _, err = job(cluster, launch, "20", "train").communicate(timeout=60)
    assert (["scontrol", "requeue", "7"] in cluster.calls()) == requeued
    assert err.count("squeue failed") == failures
    assert ("not requeued: the state of the job is not known" in err) != requeued


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--node=1", *RUN), "--node=1"),
        (("--gpus=two", *RUN), "--gpus=two"),
        (("--time=", *RUN), "--time is missing"),
        (("--", "--config=c.py", "--workdir=run"), "absolute"),
        (("--python=no-such-python", *RUN), "no-such-python"),
        ((), "--workdir=DIR"),
    ],
)
def test_a_mistake_is_one_line(cluster, flags, says):
    assert says in cluster.mistake("slurm.sh", *flags)
    assert cluster.calls() == []


def test_without_sbatch_it_says_so(machine):
    assert "sbatch is not installed" in machine.mistake("slurm.sh", *RUN)
