"""Finds the TPU's and the GPU's compilers, and has JAX compile for devices that are not here.

The only module that looks for their wheels (libtpu; jax-cuda12-plugin, jax-cuda12-pjrt and NVIDIA's
CUDA) and that sets the environment which they read. The wheels may be installed, or lie in a folder
on PYTHONPATH.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pathlib
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from bloodjax.errors import UserError
from bloodjax.planning.machines import Machine

_CUDA_PLUGINS = {"jax_plugins.xla_cuda12": "jax-cuda12-plugin"}
_DOCS = "docs/plan.md says how to install them apart"


def prepare(machine: Machine) -> None:
    """Checks that the compiler for `machine` is installed, and sets what it reads.

    Changes this process's environment and JAX's config, for all that follows: JAX computes on the
    CPU, stores no compiled programs, and asks no other host. Call it before JAX's backends start.

    Raises:
      UserError: The compiler's wheels are missing, or belong to another version of JAX.
    """
    (_prepare_tpu if machine.platform == "tpu" else _prepare_cuda)(machine.name)
    os.environ["JAX_PLATFORMS"] = "cpu"
    if jax.config.jax_platforms != "cpu":
        jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX has started: it keeps its number of devices
        # Code that asks for the number of devices gets the machine's.
        jax.config.update("jax_num_cpu_devices", machine.chips)
    jax.config.update("jax_enable_compilation_cache", False)


def devices(machine: Machine) -> Sequence[jax.Device]:
    """The chips of `machine`, which programs can be compiled for; call `prepare` first."""
    topology = topologies.get_topology_desc(platform=machine.platform, **machine.topology)
    return topology.devices


def is_available(platform: str) -> bool:
    """Whether the wheels for "tpu" or "cuda" can be imported here."""
    return bool(_libtpu() if platform == "tpu" else _cuda_plugin())


def version(machine: Machine) -> str:
    """Name and version of the compiler's wheel, such as "libtpu 0.0.42.1"."""
    wheel = "libtpu" if machine.platform == "tpu" else _CUDA_PLUGINS[_cuda_plugin()]
    return f"{wheel} {_installed(wheel) or 'of unknown version'}"


def _prepare_tpu(name: str) -> None:
    wanted = _wanted_libtpu()
    found = _libtpu()
    install = f"pip install 'libtpu{wanted}'"
    if not found:
        raise UserError(
            f"--device={name} needs the TPU compiler, which is not installed: "
            f"{install}, or 'bloodjax[plan-tpu]'; {_DOCS}"
        )
    own = _installed("libtpu")
    if own and wanted and "TPU_LIBRARY_PATH" not in os.environ and not _matches(own, wanted):
        raise UserError(
            f"--device={name}: libtpu {own} is installed, but jax {jax.__version__} expects "
            f"libtpu{wanted}: {install}"
        )
    os.environ.update(
        # Without this it waits for a metadata server, which only Google's hosts have.
        TPU_SKIP_MDS_QUERY="1",
        # Without this only one process of a host may load it (/tmp/libtpu_lockfile).
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    )
    # What it would otherwise look for on the host, and complain about.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def _prepare_cuda(name: str) -> None:
    plugin = _cuda_plugin()
    wanted = importlib.metadata.version("jaxlib")
    install = f"pip install 'jax[cuda12]=={jax.__version__}'"
    if not plugin:
        raise UserError(
            f"--device={name} needs the GPU compiler, which is not installed: "
            f"{install}, or 'bloodjax[plan-gpu]'; {_DOCS}"
        )
    wheel = _CUDA_PLUGINS[plugin]
    own = _installed(wheel)
    if own and own != wanted:
        raise UserError(
            f"--device={name}: {wheel} {own} is installed, but jaxlib is {wanted}, expected the "
            f"same version: {install}"
        )
    toolkit = _cuda_toolkit()
    if toolkit is None:
        raise UserError(
            f"--device={name} needs ptxas of the wheel nvidia-cuda-nvcc-cu12, which is not "
            f"installed: {install}; {_DOCS}"
        )
    flags = os.environ.get("XLA_FLAGS", "")
    # There is no GPU to time algorithms on.
    flags += f" --xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={toolkit}"
    os.environ["XLA_FLAGS"] = flags.strip()
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}{os.pathsep}{toolkit / 'bin'}"


def _libtpu() -> bool:
    given = os.environ.get("TPU_LIBRARY_PATH")
    return bool(given and os.path.isfile(given)) or _spec("libtpu") is not None


def _cuda_plugin() -> str:
    """The module of JAX's CUDA plugin that has its compiler beside it; "" if there is none."""
    for module in _CUDA_PLUGINS:
        spec = _spec(module)
        folders = (spec.submodule_search_locations or ()) if spec else ()
        if any((pathlib.Path(folder) / "xla_cuda_plugin.so").exists() for folder in folders):
            return module
    return ""


def _cuda_toolkit() -> pathlib.Path | None:
    """The folder of NVIDIA's wheels that has bin/ptxas."""
    spec = _spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for ptxas in sorted(pathlib.Path(folder).glob("*/bin/ptxas")):
            return ptxas.parents[1]
    return None


def _spec(module: str):
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent package is missing
        return None


def _installed(wheel: str) -> str | None:
    try:
        return importlib.metadata.version(wheel)
    except importlib.metadata.PackageNotFoundError:
        return None


def _wanted_libtpu() -> str:
    """The libtpu that this version of JAX names, such as "==0.0.42.*"; "" if it names none."""
    for requirement in importlib.metadata.requires("jax") or ():
        if found := re.match(r"libtpu\s*([=<>!~][^;]*?)\s*;.*extra == ['\"]tpu['\"]", requirement):
            return found[1]
    return ""


def _matches(own: str, wanted: str) -> bool:
    """Whether a version satisfies "==PREFIX.*" or "==VERSION"; other specifiers are not checked."""
    found = re.fullmatch(r"==([\w.]+?)(\.\*)?", wanted)
    if found is None:
        return True
    return own == found[1] or bool(found[2] and own.startswith(f"{found[1]}."))
