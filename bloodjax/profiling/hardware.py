"""Peak FLOP/s and memory use of the devices of this process."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import time

import jax
import jax.numpy as jnp

# Dense peak of one device in TFLOP/s (of one core for TPU v2 and v3). "float32" is what JAX's
# default precision computes float32 in: TF32 on NVIDIA Ampere and later, bfloat16 passes on TPU
# (`jax.lax.Precision.DEFAULT`). V100 and T4 have no bfloat16 units.
# Sources: NVIDIA's data sheet of each card (H100 and H200: half of the stated sparse peak);
# Google Cloud's "TPU system architecture" page of each version.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    (r"\bH100 PCIe\b", {"bfloat16": 756.5, "float32": 378.0}),
    (r"\bH[12]00 NVL\b", {"bfloat16": 835.5, "float32": 417.5}),
    (r"\bH[12]00\b", {"bfloat16": 989.5, "float32": 494.5}),
    (r"\bA100\b", {"bfloat16": 312.0, "float32": 156.0}),
    (r"\bL4\b", {"bfloat16": 121.0, "float32": 60.0}),
    (r"\bV100-PCIE\b", {"float32": 14.0}),
    (r"\bV100\b", {"float32": 15.7}),
    (r"\bT4\b", {"float32": 8.1}),
    (r"^TPU v6( lite|e)$", {"bfloat16": 918.0, "float32": 918.0}),
    (r"^TPU v5( lite|e)$", {"bfloat16": 197.0, "float32": 197.0}),
    (r"^TPU v5p?$", {"bfloat16": 459.0, "float32": 459.0}),
    (r"^TPU v4$", {"bfloat16": 275.0, "float32": 275.0}),
    (r"^TPU v3$", {"bfloat16": 61.5, "float32": 61.5}),
    (r"^TPU v2$", {"bfloat16": 22.5, "float32": 22.5}),
)
_MATMUL = 2048


@dataclasses.dataclass(frozen=True)
class Peak:
    """The highest possible rate of all devices together.

    Attributes:
      flops: Floating-point operations per second (a multiply-add is two); None if unknown.
      origin: Source of the number, or why there is none.
    """

    flops: float | None
    origin: str


def peak(dtype: str) -> Peak:
    """The peak of all devices of this process together.

    Args:
      dtype: Name of the compute dtype, such as "bfloat16".
    """
    devices = jax.local_devices()
    kind = devices[0].device_kind
    if devices[0].platform == "cpu":  # Several CPU devices share the same cores.
        return Peak(
            _measured(), f"measured: float32 matrix product of {_MATMUL} x {_MATMUL} on this CPU"
        )
    one = published(kind, dtype)
    if one is None:
        return Peak(None, f"no published peak of {kind!r} in {dtype} is known")
    return Peak(one * len(devices), f"published: {len(devices)} x {kind}, {dtype}, dense")


def utilisation(flops_per_second: float, peak: Peak) -> float | None:
    """Model FLOP utilisation: the rate as a share of `peak`, 0..1; None if the peak is unknown."""
    return flops_per_second / peak.flops if peak.flops else None


def published(kind: str, dtype: str) -> float | None:
    """The published dense peak of one device in FLOP/s; None if the device is not in the table.

    Args:
      kind: `jax.Device.device_kind`.
      dtype: Name of the compute dtype.
    """
    for pattern, tera in _PEAKS:
        if re.search(pattern, kind):
            return tera[dtype] * 1e12 if dtype in tera else None
    return None


def _measured(repeats: int = 4) -> float:
    matrix = jnp.ones((_MATMUL, _MATMUL), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * _MATMUL**3 / min(seconds)


def threads() -> int:
    """Number of CPU threads that this process can run at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> tuple[int | None, str]:
    """Peak memory in bytes (None if unknown), and which memory it is.

    It is the fullest device's if all devices report theirs, otherwise the process's on the host.
    """
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    if all(peaks):
        return max(peaks), "fullest device"
    try:
        import resource  # Unix only.
    except ImportError:
        return None, "neither the device nor the system reports it"
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest * (1 if sys.platform == "darwin" else 1024), "process, on the host"
