"""launch/tpu_vm.sh with a stand-in gcloud: its calls, and what it does about the answers."""

import shlex
import tarfile

import pytest

ZONE = "--zone=us-central1-a"
RUN = ("--", "--config=configs/resnet50.py", "--workdir=/mnt/bloodjax/a b")
NFS = "--nfs=10.0.0.2:/vol1"
# What a round of watch looks at, from files that hold an answer a line.
GCLOUD = """
case "$*" in
  *"queued-resources describe"*) answer=$(reply "$HOME/places") ;;
  *"tpu-vm describe"*) answer=$(reply "$HOME/machines") ;;
  *"worker.sh status"*) answer=$(reply "$HOME/runs") ;;
  *" create "*) [[ ! -f $HOME/creates ]] || answer=$(reply "$HOME/creates") ;;
  *worker.sh*start*) [[ ! -f $HOME/starts ]] || exit "$(reply "$HOME/starts")" ;;
esac
[[ ${answer:-} != ERROR* ]] || { echo "$answer" >&2; exit 1; }
echo -e "${answer:-}"
"""


@pytest.fixture
def gcloud(machine):
    machine.standin("gcloud")
    return machine


def words(*calls):
    return [shlex.split(f"gcloud compute tpus {call} {ZONE}") for call in calls]


def kinds(machine):
    """The calls by what they do, one word each, in one text."""
    marks = {
        "queued-resources describe": "place",
        "tpu-vm describe": "look",
        "worker.sh status": "status",
        "worker.sh start": "start",
        "tpu-vm scp": "copy",
        "uv pip install": "install",
        " create ": "create",
        " delete ": "delete",
    }
    return " ".join(
        next(kind for mark, kind in marks.items() if mark in " ".join(call))
        for call in machine.calls()
    )


def say(statuses):
    if statuses.startswith("ERROR"):
        return statuses
    return r"\n".join(f"bloodjax-status {status}" for status in statuses.split(","))


def watch(machine, *flags, machines=("READY",), runs=("0",), **files):
    """Runs watch against scripted answers; the last of each is repeated."""
    machine.standin("gcloud", GCLOUD)
    for name, lines in {"machines": machines, "runs": runs, **files}.items():
        if name == "runs":  # "0,75" is what two workers say
            lines = [say(line) for line in lines]
        (machine.folder / name).write_text("".join(f"{line}\n" for line in lines))
    return machine.run("tpu_vm.sh", "watch", ZONE, NFS, "--poll=0", *flags, *RUN)


@pytest.mark.parametrize(
    ("action", "call"),
    [
        (
            ("create", "--spot"),
            "tpu-vm create bloodjax --accelerator-type=v5litepod-8 --version=v2-alpha-tpuv5-lite"
            " --spot",
        ),
        (
            ("create", "--name=a", "--accelerator=v6e-16", "--version=v2-alpha-tpuv6e"),
            "tpu-vm create a --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e",
        ),
        (
            ("queue", "--spot"),
            "queued-resources create bloodjax-queue --node-id=bloodjax"
            " --accelerator-type=v5litepod-8 --runtime-version=v2-alpha-tpuv5-lite --spot",
        ),
        (("logs",), "tpu-vm ssh bloodjax --worker=0 '--command=tail -n 200 -F bloodjax-run/log'"),
        (
            ("status",),
            "tpu-vm ssh bloodjax --worker=all '--command=bloodjax/launch/worker.sh status'",
        ),
        (("stop",), "tpu-vm ssh bloodjax --worker=all '--command=bloodjax/launch/worker.sh stop'"),
        (("delete",), "tpu-vm delete bloodjax --quiet"),
        (("delete", "--queued"), "queued-resources delete bloodjax-queue --force --quiet"),
    ],
)
def test_each_action_is_one_call(gcloud, action, call):
    assert gcloud.run("tpu_vm.sh", *action, ZONE).returncode == 0
    assert gcloud.calls() == words(call)


def test_run_starts_the_training_on_all_workers(gcloud):
    assert gcloud.run("tpu_vm.sh", "run", ZONE, "--project=p", *RUN).returncode == 0
    (call,) = gcloud.calls()
    assert call[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "bloodjax"]
    assert call[6] == "--worker=all"
    assert call[8:] == [ZONE, "--project=p"]
    command = shlex.split(call[7].removeprefix("--command="))
    assert command[:5] == ["cd", "bloodjax", "&&", "launch/worker.sh", "start"]
    assert command[5:] == ["--", "../venv/bin/python", "-m", "bloodjax.main", *RUN[1:]]


def test_setup_copies_the_checkout_then_mounts_and_installs_on_all_workers(gcloud):
    gcloud.standin("gcloud", '[[ $4 != scp ]] || cp "$5" "$HOME/copied"')
    ended = gcloud.run("tpu_vm.sh", "setup", ZONE, NFS)
    assert (ended.returncode, ended.stderr) == (0, "")
    copy, install = gcloud.calls()
    assert copy[3:5] == ["tpu-vm", "scp"]
    assert copy[6:] == ["bloodjax:", "--worker=all", ZONE]
    assert install[3:7] == ["tpu-vm", "ssh", "bloodjax", "--worker=all"]
    script = install[7].removeprefix("--command=").splitlines()
    assert script[0] == "set -e"
    mounts = "sudo mount -t nfs -o nolock 10.0.0.2:/vol1 /mnt/bloodjax"
    assert f"mountpoint -q /mnt/bloodjax || {mounts}" in script
    assert script[-1].endswith("-e './bloodjax[tpu,remote]' jax==0.10.2")
    with tarfile.open(gcloud.folder / "copied") as archive:
        names = archive.getnames()
    assert {"setup.cfg", "bloodjax/main.py", "configs/common.py", "launch/worker.sh"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]


def test_setup_does_not_install_what_it_could_not_copy(gcloud):
    gcloud.standin("gcloud", "exit 1")
    assert gcloud.run("tpu_vm.sh", "setup", ZONE).returncode != 0
    assert kinds(gcloud) == "copy"


def test_watch_ends_with_the_run(machine):
    assert watch(machine, runs=("running", "running,0", "0,0")).returncode == 0
    assert kinds(machine) == "look status look status look status"


def test_watch_makes_a_preempted_machine_again_and_goes_on(machine):
    ended = watch(
        machine,
        "--spot",
        machines=("READY", "PREEMPTED", "CREATING", "READY"),
        runs=("running", "absent", "running", "0"),
    )
    assert ended.returncode == 0
    rounds = ["look status", "look delete create", "look", "look status copy install start"]
    assert kinds(machine) == " ".join([*rounds, *["look status"] * 2])
    assert words("tpu-vm delete bloodjax --quiet")[0] in machine.calls()
    (create,) = [call for call in machine.calls() if "create" in call]
    assert "--spot" in create


def test_watch_makes_a_missing_machine_without_deleting_it(machine):
    ended = watch(machine, machines=("ERROR NOT_FOUND", "READY"))
    assert ended.returncode == 0
    assert kinds(machine) == "look create look status"


def test_watch_waits_for_its_place_in_the_queue_and_asks_again_when_suspended(machine):
    ended = watch(
        machine,
        "--queued",
        places=("WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "PROVISIONING", "ACTIVE"),
        runs=("absent", "absent", "0"),
    )
    assert ended.returncode == 0
    started = "place look status copy install start"
    assert (
        kinds(machine) == f"place {started} place delete create place {started} place look status"
    )
    assert words("queued-resources delete bloodjax-queue --force --quiet")[0] in machine.calls()


@pytest.mark.parametrize("status", ["75", "75,0", "143", "1", "lost", "lost,75"])
def test_watch_starts_again_all_that_is_neither_done_nor_a_mistake(machine, status):
    assert watch(machine, runs=(status, "0")).returncode == 0
    assert kinds(machine) == "look status copy install start look status"


@pytest.mark.parametrize("status", ["2", "0,2", "2,75", "143,2,75"])
def test_watch_ends_at_a_mistake(machine, status):
    ended = watch(machine, runs=(status,))
    assert (ended.returncode, kinds(machine)) == (2, "look status")


def test_watch_gives_up_at_the_limit(machine):
    ended = watch(machine, "--restarts=2", runs=("1",))
    assert ended.returncode == 75
    assert "--restarts=2" in ended.stderr
    assert kinds(machine).count("start") == 3  # once, and twice again


def test_watch_outlives_what_fails_in_passing(machine):
    ended = watch(
        machine,
        machines=("READY", "ERROR timed out", "READY"),
        runs=("absent", "ERROR unreachable", "absent", "0"),
        starts=("1", "0"),
    )
    assert ended.returncode == 0
    assert "delete" not in kinds(machine)
    assert kinds(machine).count("start") == 2


def test_watch_tries_again_where_a_zone_is_full_and_not_where_a_flag_is_wrong(machine):
    missing = ("ERROR NOT_FOUND", "ERROR NOT_FOUND", "READY")
    ended = watch(machine, machines=missing, creates=("ERROR no more capacity", "made"))
    assert ended.returncode == 0
    assert kinds(machine).count("create") == 2
    ended = watch(machine, machines=missing, creates=("ERROR INVALID_ARGUMENT: v9",))
    assert ended.returncode == 2
    assert "INVALID_ARGUMENT: v9" in ended.stderr


def test_watch_understands_an_answer_beside_a_warning(machine):
    machine.standin("gcloud", 'echo "WARNING: Python 3.8 is no longer supported" >&2\n' + GCLOUD)
    plain = machine.standin
    machine.standin = lambda *_: None  # `watch` must not replace it
    try:
        ended = watch(machine)
    finally:
        machine.standin = plain
    assert ended.returncode == 0
    assert kinds(machine) == "look status"


def test_watch_ends_at_once_where_gcloud_cannot_look(machine):
    ended = watch(machine, machines=("ERROR no account",))
    assert ended.returncode == 2
    assert "no account" in ended.stderr
    assert kinds(machine) == "look"


@pytest.mark.parametrize(
    "flags",
    [
        ("create",),
        ("queue",),
        ("setup", NFS),
        ("run", *RUN),
        ("logs",),
        ("status",),
        ("watch", NFS, *RUN),
        ("watch", "--", "--config=c", "--workdir=gs://cells/run"),
        ("stop",),
        ("delete",),
    ],
)
def test_dry_run_prints_and_calls_nothing(gcloud, flags):
    ended = gcloud.run("tpu_vm.sh", flags[0], ZONE, "--dry-run", *flags[1:])
    assert (ended.returncode, ended.stderr, gcloud.calls()) == (0, "", [])
    assert ended.stdout.startswith(("gcloud compute tpus ", "tar -C "))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "''"),
        (("fly", ZONE), "'fly'"),
        (("create",), "--zone is missing"),
        (("create", ZONE, "--zoom"), "--zoom"),
        (("run", ZONE), "--workdir=DIR"),
        (("run", ZONE, "--", "--config=c", "--workdir=here"), "absolute"),
        (("watch", ZONE, *RUN), "expected --workdir=gs://BUCKET/NAME, or --nfs"),
        (("watch", ZONE, NFS, "--poll=soon", *RUN), "--poll=soon"),
    ],
)
def test_a_mistake_is_one_line(gcloud, flags, says):
    assert says in gcloud.mistake("tpu_vm.sh", *flags)
    assert gcloud.calls() == []


def test_without_gcloud_it_says_so(machine):
    assert "gcloud is not installed" in machine.mistake("tpu_vm.sh", "create", ZONE)
