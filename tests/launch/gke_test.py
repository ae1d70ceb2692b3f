"""launch/gke.sh with stand-in kubectl and docker; its manifests, as YAML; its Dockerfile."""

import re

import pytest
import yaml

IMAGE = "--image=europe-docker.pkg.dev/p/r/bloodjax:1"
RUN = ("--", "--config=configs/resnet50.py", "--workdir=gs://cells/run")


def render(machine, *flags, run=RUN):
    ended = machine.run("gke.sh", "render", IMAGE, *flags, *run)
    assert (ended.returncode, ended.stderr) == (0, "")
    return yaml.safe_load(ended.stdout)


def parts(manifest):
    """The JobSet's one job, its pod and its container."""
    (workers,) = manifest["spec"]["replicatedJobs"]
    job = workers["template"]["spec"]
    pod = job["template"]["spec"]
    return workers, job, pod, pod["containers"][0]


def test_a_status_of_2_is_final_and_all_else_starts_everything_again(machine):
    manifest = render(machine, "--restarts=7")
    assert "${" not in str(manifest)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    _, job, pod, container = parts(manifest)
    assert (job["backoffLimit"], job["completionMode"], pod["restartPolicy"]) == (
        0,
        "Indexed",
        "Never",
    )
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {
        "containerName": container["name"],
        "operator": "In",
        "values": [2],
    }
    assert pod["terminationGracePeriodSeconds"] > 60  # to save in, after SIGTERM


def test_one_gpu(machine):
    workers, job, pod, container = parts(render(machine))
    assert (workers["replicas"], job["completions"], job["parallelism"]) == (1, 1, 1)
    assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert container["image"] == IMAGE.removeprefix("--image=")
    assert container["args"] == list(RUN[1:])
    memory = {"name": "memory", "emptyDir": {"medium": "Memory"}}
    assert container["volumeMounts"] == [{"name": "memory", "mountPath": "/dev/shm"}]
    assert (pod["volumes"], pod["serviceAccountName"]) == ([memory], "default")
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_a_share_in_place_of_a_bucket(machine):
    run = ("--", "--config=c", "--workdir=/data/run")
    flags = ("--claim=share", "--mount=/data", "--service-account=cells")
    _, _, pod, container = parts(render(machine, *flags, run=run))
    assert {"name": "share", "mountPath": "/data"} in container["volumeMounts"]
    assert {"name": "share", "persistentVolumeClaim": {"claimName": "share"}} in pod["volumes"]
    assert pod["serviceAccountName"] == "cells"
    assert "expected --workdir=gs://BUCKET/NAME, or --claim" in machine.mistake(
        "gke.sh", "render", IMAGE, *run
    )


def test_several_gpu_machines_are_told_who_they_are(machine):
    _, job, _, container = parts(render(machine, "--name=cells", "--hosts=4", "--chips=8"))
    assert (job["completions"], job["parallelism"]) == (4, 4)
    assert container["args"][-3:] == [
        "--coordinator=cells-workers-0-0.cells:8476",
        "--num_processes=4",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]


def test_tpu_slices_find_each_other_and_lie_in_a_node_pool_each(machine):
    flags = ("--kind=tpu", "--topology=4x4", "--hosts=4", "--chips=4", "--slices=2")
    manifest = render(machine, *flags)
    workers, job, pod, container = parts(manifest)
    assert (workers["replicas"], job["parallelism"]) == (2, 4)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["args"] == list(RUN[1:])
    assert "alpha.jobset.sigs.k8s.io/exclusive-topology" in manifest["metadata"]["annotations"]


def test_spot_nodes_are_chosen_and_tolerated(machine):
    _, _, pod, _ = parts(render(machine, "--spot"))
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert [taint["key"] for taint in pod["tolerations"]] == ["cloud.google.com/gke-spot"]


def test_arguments_reach_the_run_as_they_are(machine):
    odd = [
        '--config.augment="d4|x\\y"',
        "--config.a=b: #c",
        "--config.b=${NAME} & é",
        "--config.c='",
        "--config.d=$(HOME)",
    ]
    _, _, _, container = parts(render(machine, run=(*RUN, *odd)))
    assert container["args"] == [
        *RUN[1:],
        *odd[:-1],
        "--config.d=$$(HOME)",
    ]  # $$( is Kubernetes's $(


def test_apply_hands_the_manifest_to_kubectl(machine):
    machine.standin("kubectl", 'cat >"$HOME/applied"')
    assert machine.run("gke.sh", "apply", IMAGE, *RUN).returncode == 0
    assert machine.calls() == [["kubectl", "apply", "--filename=-"]]
    assert yaml.safe_load((machine.folder / "applied").read_text()) == render(machine)


@pytest.mark.parametrize("action", ["apply", "render"])
def test_an_argument_that_yaml_cannot_have_starts_nothing(machine, action):
    machine.standin("kubectl")
    ended = machine.run("gke.sh", action, IMAGE, *RUN, "--config.tracking.tags=a\nb")
    assert (ended.returncode, ended.stdout, machine.calls()) == (2, "", [])
    assert ended.stderr.startswith("error: control character in: --config.tracking.tags=a")


@pytest.mark.parametrize(
    ("action", "call"),
    [
        ("status", "get jobsets,pods --selector=jobset.sigs.k8s.io/jobset-name=cells"),
        (
            "logs",
            "logs --follow --tail=200 --selector=jobset.sigs.k8s.io/jobset-name=cells,"
            "batch.kubernetes.io/job-completion-index=0",
        ),
        ("delete", "delete jobset cells"),
    ],
)
def test_each_action_is_one_call(machine, action, call):
    machine.standin("kubectl")
    assert machine.run("gke.sh", action, "--name=cells").returncode == 0
    assert machine.calls() == [["kubectl", *call.split()]]


def test_build_builds_from_the_checkout_and_pushes(machine, launch):
    machine.standin("docker")
    assert machine.run("gke.sh", "build", IMAGE, "--kind=tpu").returncode == 0
    build, push = machine.calls()
    assert build[:5] == [
        "docker",
        "build",
        f"--file={launch}/gke/Dockerfile",
        "--build-arg=EXTRA=tpu",
        build[4],
    ]
    assert build[4:] == ["--build-arg=JAX_VERSION=0.10.2", f"--tag={IMAGE[8:]}", str(launch.parent)]
    assert push == ["docker", "push", IMAGE[8:]]


@pytest.mark.parametrize("action", ["build", "apply", "status", "logs", "delete"])
def test_dry_run_prints_and_calls_nothing(machine, action):
    machine.standin("kubectl")
    machine.standin("docker")
    ended = machine.run("gke.sh", action, IMAGE, "--dry-run", *RUN)
    assert (ended.returncode, ended.stderr, machine.calls()) == (0, "", [])
    assert re.search("^(kubectl|docker) ", ended.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "''"),
        (("render", *RUN), "--image is missing"),
        (("render", IMAGE), "--workdir=DIR"),
        (("render", IMAGE, "--name=Cells", *RUN), "--name=Cells"),
        (("render", IMAGE, "--kind=gpu", *RUN), "--kind=gpu"),
        (("render", IMAGE, "--service-account=A b", *RUN), "--service-account=A b"),
        (("render", IMAGE, "--hosts=0", *RUN), "--hosts=0"),
        (("render", IMAGE, "--slices=2", *RUN), "--slices=2"),
        (("render", IMAGE, "--topology=big", "--kind=tpu", *RUN), "--topology=big"),
        (("render", "--image=a b", *RUN), "--image=a b"),
        (("status", "--nam=x"), "--nam=x"),
    ],
)
def test_a_mistake_is_one_line(machine, flags, says):
    machine.standin("kubectl")
    assert says in machine.mistake("gke.sh", *flags)


@pytest.mark.parametrize(("action", "tool"), [("build", "docker"), ("apply", "kubectl")])
def test_without_its_tool_it_says_so(machine, action, tool):
    assert f"{tool} is not installed" in machine.mistake("gke.sh", action, IMAGE, *RUN)


def test_the_image_is_built_from_the_checkout_and_does_not_run_as_root(launch):
    lines = (launch / "gke" / "Dockerfile").read_text().splitlines()
    version = re.search(r"JAX_VERSION=(\S+)", (launch / "lib.sh").read_text())[1]
    assert "FROM python:3.12-slim" in lines
    assert f"ARG JAX_VERSION={version}" in lines
    assert "USER 1000" in lines
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((launch.parent / name).exists() for name in copied)
    sent = (launch / "gke" / "Dockerfile.dockerignore").read_text().splitlines()
    assert sent == ["*", *(f"!{name}" for name in copied), "**/__pycache__"]


def test_the_share_is_one_that_all_pods_may_write(launch):
    claim = yaml.safe_load((launch / "gke" / "storage.yaml").read_text())
    assert (claim["kind"], claim["metadata"]["name"]) == ("PersistentVolumeClaim", "bloodjax")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
