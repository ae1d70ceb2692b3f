import pytest

from bloodjax.distributed import cluster
from bloodjax.distributed.cluster import ClusterSpec
from bloodjax.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "2",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2"}
OPEN_MPI_4 = {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://10.0.0.1:3"}


def test_flags_say_it_all():
    found = cluster.find("host:12", 4, 0, SLURM)
    assert found == ClusterSpec("host:12", 4, 0, explicit=True)
    assert cluster.find("[::1]:12", 2, 1, {}) == ClusterSpec("[::1]:12", 2, 1, explicit=True)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},
        {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
        {"KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    ],
)
def test_one_process_waits_for_no_others(environ):
    assert cluster.find(None, None, None, environ) is None


def test_one_process_by_flags_is_alone_whatever_the_environment():
    assert cluster.find("host:12", 1, 0, SLURM) is None
    assert cluster.find(None, 1, None, OPEN_MPI) is None


def test_several_processes_are_detected():
    assert cluster.find(None, None, None, SLURM) == ClusterSpec(None, 2, 1)
    assert cluster.find(None, None, None, OPEN_MPI_4) == ClusterSpec(None, 3, 2)


def test_flags_go_before_what_is_detected():
    assert cluster.find("host:12", None, None, OPEN_MPI) == ClusterSpec("host:12", 3, 2)
    assert cluster.find("host:12", None, None, SLURM) == ClusterSpec("host:12", 2, 1)


@pytest.mark.parametrize(
    ("tpu", "expected"),
    [
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, ClusterSpec()),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, ClusterSpec()),
        ({}, ClusterSpec()),
    ],
)
def test_a_tpu_pod_is_detected(tpu, expected, monkeypatch):
    monkeypatch.setattr(cluster, "_is_tpu", lambda: True)
    assert cluster.find(None, None, None, tpu) == expected


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        (("host:12", None, None), {}, "--num_processes and --process_id missing"),
        ((None, 2, 0), {}, "--coordinator missing: a run of several processes needs --coord"),
        (("host:12", 2, None), {}, "--process_id missing"),
        ((None, None, 0), {}, "--coordinator and --num_processes missing"),
        (("host:12", 2, 2), {}, "--process_id=2: expected one of 0 to 1, with --num_processes=2"),
        (("host:12", 2, -1), {}, "--process_id=-1: expected a number of at least 0"),
        (("host:12", 0, 0), {}, "--num_processes=0: expected a number of at least 1"),
        (("host", 2, 0), {}, "--coordinator=host: expected HOST:PORT of process 0"),
        (("host:port", 2, 0), {}, "--coordinator=host:port: expected HOST:PORT"),
        ((None, None, None), OPEN_MPI, "this version of Open MPI does not tell the host"),
    ],
)
def test_flags_that_make_no_sense(flags, environ, message):
    with pytest.raises(UserError, match=message):
        cluster.find(*flags, environ)
