"""The machines that a run can be planned for.

The clock of a TPU is its published peak divided by the operations of its matrix units per cycle:
4 units of 128 x 128 per core (v6e: 256 x 256), two operations each; v4 and v5p have two cores per
chip. Bandwidths are from Google Cloud's "TPU system architecture" page of each version; that of the
links between chips is half of the stated bidirectional one. The memory of a TPU is what its
compiler states as available to a program.

The properties of a GPU are those that CUDA reports for the SXM modules, which NVIDIA's data sheets
and the device descriptions in openxla/xla (`xla/backends/gpu/target_config/specs`) agree on.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from bloodjax.errors import UserError, did_you_mean
from bloodjax.profiling import hardware

# Fraction of a GPU's memory that JAX reserves by default (XLA_PYTHON_CLIENT_MEM_FRACTION).
_GPU_FRACTION = 0.75
_MAX_GPUS = 8  # one host


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine that has one process per host and one JAX device per chip.

    Attributes:
      name: Name for `--device`, such as "v5e-8" or "h200x4".
      platform: JAX's platform: "tpu" or "cuda".
      kind: `jax.Device.device_kind`.
      chips: Number of chips.
      memory: Memory of a chip that JAX lets a program use by default, in bytes.
      total_memory: Memory of a chip in bytes.
      bandwidth: Bandwidth of a chip's memory in bytes per second.
      link: Bytes per second that a chip sends to other chips at most.
      clock: Cycles per second of the compiler's estimates; None if it makes none.
      vector_flops: Peak of a TPU chip's vector units in FLOP/s; None for a GPU.
      topology: Arguments of `jax.experimental.topologies.get_topology_desc`.
    """

    name: str
    platform: str
    kind: str
    chips: int
    memory: int
    total_memory: int
    bandwidth: float
    link: float
    clock: float | None
    vector_flops: float | None
    topology: Mapping[str, Any]

    def peak_flops(self, dtype: str) -> float | None:
        """Published dense peak of a chip in FLOP/s for a dtype's name; None if there is none."""
        return hardware.published(self.kind, dtype)


@dataclasses.dataclass(frozen=True)
class _Tpu:
    """A version of TPU, in GHz, GB/s and, for the memory of a chip, GiB."""

    kind: str
    prefix: str  # of the topology's name
    chip: str  # chip_config_name
    clock: float
    bandwidth: float
    link: float
    usable: float
    total: float


_TPUS = {
    "v4": _Tpu("TPU v4", "v4", "megacore", 1.049, 1228.0, 300.0, 30.75, 32.0),
    "v5e": _Tpu("TPU v5 lite", "v5e", "default", 1.503, 819.0, 200.0, 15.75, 16.0),
    "v5p": _Tpu("TPU v5", "v5", "megacore", 1.751, 2765.0, 600.0, 95.74, 96.0),
    "v6e": _Tpu("TPU v6 lite", "v6e", "default", 1.751, 1640.0, 400.0, 31.25, 32.0),
}

# Operations of a vector unit per cycle: 8 x 128 lanes with four units each.
_VECTOR = 8 * 128 * 4

# Name -> version, shape of the topology, chips of a host. The number in the names of v4 and v5p
# counts cores, of which a chip has two; JAX sees one device per chip.
_SLICES = {
    "v4-8": ("v4", "2x2x1", (2, 2, 1)),
    "v5p-8": ("v5p", "2x2x1", (2, 2, 1)),
    "v5e-1": ("v5e", "1x1", (1, 1, 1)),
    "v5e-4": ("v5e", "2x2", (2, 2, 1)),
    "v5e-8": ("v5e", "2x4", (2, 4, 1)),
    "v5e-16": ("v5e", "4x4", (2, 2, 1)),
    "v5e-64": ("v5e", "8x8", (2, 2, 1)),
    "v6e-1": ("v6e", "1x1", (1, 1, 1)),
    "v6e-4": ("v6e", "2x2", (2, 2, 1)),
    "v6e-8": ("v6e", "2x4", (2, 4, 1)),
}


@dataclasses.dataclass(frozen=True)
class _Gpu:
    """A GPU: its names, compute capability, and properties in CUDA's units."""

    kind: str
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    lanes: int  # float32 units of each
    clock: float  # GHz
    bandwidth: int  # bytes per second
    link: float  # bytes per second, one way over NVLink
    memory: int  # bytes
    cache: int  # bytes, second level
    shared: int  # bytes of shared memory of each multiprocessor


_GPUS = {
    "a100": _Gpu(
        *("NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41),
        *(2_039_040_000_000, 3e11, 85_100_068_864, 40 << 20, 164 << 10),
    ),
    "h100": _Gpu(
        *("NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98),
        *(3_352_320_000_000, 4.5e11, 84_942_979_072, 50 << 20, 228 << 10),
    ),
    "h200": _Gpu(
        *("NVIDIA H200", (9, 0), 132, 128, 1.98),
        *(4_800_000_000_000, 4.5e11, 151_397_597_184, 50 << 20, 228 << 10),
    ),
}

NAMES = (*_SLICES, *_GPUS)
"""Names for `--device`; a GPU's may be followed by x and a number, as in h200x4."""


def machine(name: str) -> Machine:
    """The machine called `name`.

    Raises:
      UserError: There is none.
    """
    if name in _SLICES:
        return _tpu(name)
    found = re.fullmatch(r"([a-z]+\d+)(?:x(\d+))?", name)
    if found and found[1] in _GPUS:
        count = int(found[2] or 1)
        if not 1 <= count <= _MAX_GPUS:
            raise UserError(f"--device={name}: expected 1 to {_MAX_GPUS} GPUs, those of one host")
        return _gpu(name, _GPUS[found[1]], count)
    hint = did_you_mean(name, NAMES, "--device={}")
    raise UserError(f"--device={name}: no such machine; {hint}")


def _tpu(name: str) -> Machine:
    version, shape, host = _SLICES[name]
    tpu = _TPUS[version]
    chips = 1
    for side in shape.split("x"):
        chips *= int(side)
    return Machine(
        name=name,
        platform="tpu",
        kind=tpu.kind,
        chips=chips,
        memory=int(tpu.usable * 2**30),
        total_memory=int(tpu.total * 2**30),
        bandwidth=1e9 * tpu.bandwidth,
        link=1e9 * tpu.link,
        clock=1e9 * tpu.clock,
        vector_flops=1e9 * tpu.clock * _VECTOR * (2 if tpu.chip == "megacore" else 1),
        topology={
            "topology_name": f"{tpu.prefix}:{shape}",
            "chip_config_name": tpu.chip,
            "chips_per_host_bounds": host,
            "num_slices": 1,
            "wrap": (False, False, False),
        },
    )


def _gpu(name: str, gpu: _Gpu, count: int) -> Machine:
    return Machine(
        name=name,
        platform="cuda",
        kind=gpu.kind,
        chips=count,
        memory=int(_GPU_FRACTION * gpu.memory),
        total_memory=gpu.memory,
        bandwidth=float(gpu.bandwidth),
        link=gpu.link,
        clock=None,
        vector_flops=None,
        # One slice of one host of `count` devices.
        topology={
            "topology_name": "",
            "topology": f"1x1x{count}",
            "target_config": _target(gpu),
        },
    )


def _target(gpu: _Gpu) -> str:
    """The GPU as a `GpuTargetConfigProto` in text form, which XLA compiles for."""
    major, minor = gpu.capability
    return f"""\
gpu_device_info {{
  name: "{gpu.kind}"
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  memory_bandwidth: {gpu.bandwidth}
  l2_cache_size: {gpu.cache}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: {48 << 10}
  shared_memory_per_block_optin: {gpu.shared - 1024}
  shared_memory_per_core: {gpu.shared}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  runtime_version: "12.8.0"
  driver_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.kind}"
"""
