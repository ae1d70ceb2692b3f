"""Number of processes of a run and this one's id, from flags or from the environment.

SLURM, Open MPI, TPU pods and Kubernetes set environment variables. A run of one process must not
wait for others that never start, so an environment counts only if it reports several processes. A
shell within a SLURM allocation, or `srun -n 1`, is one process.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
from collections.abc import Mapping

from bloodjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ClusterSpec:
    """Place of this process in a run of several.

    Attributes:
      coordinator: "HOST:PORT" of process 0; None if JAX detects it.
      num_processes: Number of processes; None if JAX detects it. JAX may find that it is one.
      process_id: This process's id; None if JAX detects it.
      explicit: Whether flags gave all of it.
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
    """Reads the flags; the environment completes what they leave out.

    Args:
      coordinator: `--coordinator`.
      num_processes: `--num_processes`.
      process_id: `--process_id`.
      environ: Environment variables.

    Returns:
      None for a run of one process.

    Raises:
      UserError: The flags are wrong or incomplete.
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
                f"{' and '.join(missing)} missing: a run of several processes needs --coordinator="
                "HOST:PORT, --num_processes=N and --process_id=I"
            )
    if merged.coordinator is None and "OMPI_COMM_WORLD_SIZE" in environ:
        _check_open_mpi(environ)
    return merged


def _check(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes={num_processes}: expected a number of at least 1")
    if process_id is not None and process_id < 0:
        raise UserError(f"--process_id={process_id}: expected a number of at least 0")
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
            "this version of Open MPI does not tell the host of process 0: expected --coordinator="
            "HOST:PORT"
        )


def _detected(environ: Mapping[str, str]) -> ClusterSpec | None:
    """Detects several processes in the environment, in the same order as JAX."""
    if "OMPI_COMM_WORLD_SIZE" in environ:
        return _place(environ["OMPI_COMM_WORLD_SIZE"], environ["OMPI_COMM_WORLD_RANK"])
    if {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID"} <= set(environ):
        # Tasks of the step, not of the allocation that it runs in.
        tasks = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1"))
        return _place(tasks, environ["SLURM_PROCID"])
    if _is_tpu():
        hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES", ""))
        slices = int(environ.get("MEGASCALE_NUM_SLICES", "1"))
        alone = hosts and len(hosts.split(",")) * slices == 1
        # Without the variable, JAX asks the cloud's metadata server.
        return None if alone else ClusterSpec()
    indexed = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= set(environ)
    # JAX uses this package to ask Kubernetes for the size of the job.
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
