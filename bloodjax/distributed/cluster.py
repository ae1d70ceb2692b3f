"""How many processes a run has and which one this is: from flags, or from what started it.

SLURM, Open MPI, TPU pods and Kubernetes say so in the environment. A run on one machine must not
wait for others that never come, so that only what says "several" counts: a shell within a SLURM
allocation, or `srun -n 1`, is one process.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
from collections.abc import Mapping

from bloodjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClusterSpec:
    """A place among several processes.

    Attributes:
      coordinator: "HOST:PORT" of process 0; None for JAX to find out.
      num_processes: how many there are; None for JAX to find out, who may find one.
      process_id: which one this is; None for JAX to find out.
      explicit: whether all of it was given by flags.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    explicit: bool = False


def find(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environ: Mapping[str, str],
) -> ClusterSpec | None:
    """The place that the flags give, the environment filling in what they leave out.

    Args:
      coordinator: `--coordinator`.
      num_processes: `--num_processes`.
      process_id: `--process_id`.
      environ: the environment's variables.

    Returns:
      None for a run of one process.

    Raises:
      UserError: the flags are wrong, or do not say enough.
    """
    _check(coordinator, num_processes, process_id)
    flags = ClusterSpec(coordinator, num_processes, process_id, explicit=True)
    if num_processes == 1:
        return None
    if None not in (coordinator, num_processes, process_id):
        return flags
    found = _detected(environ)
    given = (coordinator, num_processes, process_id) != (None, None, None)
    if not given and found is None:
        return None
    found = found or ClusterSpec()
    merged = ClusterSpec(
        coordinator or found.coordinator,
        found.num_processes if num_processes is None else num_processes,
        found.process_id if process_id is None else process_id,
    )
    if given:
        names = ("coordinator", "num_processes", "process_id")
        missing = [f"--{name}" for name in names if getattr(merged, name) is None]
        if missing and not (found.num_processes and missing == ["--coordinator"]):
            raise UserError(
                f"{' and '.join(missing)} missing: a run of several processes takes --coordinator="
                "HOST:PORT, --num_processes=N and --process_id=I"
            )
    if merged.coordinator is None and "OMPI_COMM_WORLD_SIZE" in environ:
        _check_open_mpi(environ)
    return merged


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: expected a number of at least 1")
    if process_id is not None and process_id < 0:
        raise UserError(f"--process_id={process_id}: expected a number from 0 on")
    if None not in (num_processes, process_id) and process_id >= num_processes:
        raise UserError(
            f"--process_id={process_id}: expected one of 0 to {num_processes - 1}, with "
            f"--num_processes={num_processes}"
        )
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"--coordinator={coordinator}: expected HOST:PORT of process 0")


def _check_open_mpi(environ: Mapping[str, str]) -> None:
    if "OMPI_MCA_orte_hnp_uri" not in environ and "SLURM_STEP_NODELIST" not in environ:
        raise UserError(
            "this version of Open MPI does not say where process 0 runs: expected --coordinator="
            "HOST:PORT"
        )


def _detected(environ: Mapping[str, str]) -> ClusterSpec | None:
    """A place among several processes that the environment gives, in the order that JAX looks."""
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return _place(environ["OMPI_COMM_WORLD_SIZE"], environ["OMPI_COMM_WORLD_RANK"])
    if {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= set(environ):
        # Of the step, not of the allocation that it runs in.
        tasks = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1"))
        return _place(tasks, environ["SLURM_PROCID"])
    if _is_tpu():
        hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", ""))
        slices = int(environ.get("MEGASCALE_NUM_SLICES", "1"))
        alone = hosts and len(hosts.split(",")) * slices == 1
        # Without the variable, the cloud's metadata know, and JAX asks them.
        return None if alone else ClusterSpec()
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environ)
    # JAX asks Kubernetes for the job's size through this package.
    if indexed and importlib.util.find_spec("kubernetes"):
        return ClusterSpec()
    return None


def _place(processes: str, process: str) -> ClusterSpec | None:
    if int(processes) < 2:
        return None
    return ClusterSpec(None, int(processes), int(process))


def _is_tpu() -> bool:
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None
