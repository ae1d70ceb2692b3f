"""The computations that `benchmarks.depthwise` times."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from bloodjax.ops import depthwise_cpu, depthwise_gpu

DIRECTIONS = depthwise_gpu.Form._fields
FORMS = {
    "cpu": ("native", "shifted", "toeplitz", "torch"),
    "gpu": ("native", "shifted", "pallas", "torch"),
    "tpu": ("native", "shifted"),
}
_TOEPLITZ_PIXELS = 144  # The matrices of larger maps do not fit into memory.


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution of square feature maps: NHWC, padded by half the kernel on each side."""

    kernel: int
    stride: int
    side: int
    channels: int
    batch: int
    dtype: str

    @property
    def shape(self) -> dict[str, Any]:
        """Stride and padding as keyword arguments."""
        return {"stride": self.stride, "padding": ((self.kernel // 2,) * 2,) * 2}

    def arrays(self) -> dict[str, jax.Array]:
        """Random `x`, `kernel` and `grad` (gradient of the output) on the device."""
        out = (self.side - 1) // self.stride + 1
        sizes = {
            "x": (self.batch, self.side, self.side, self.channels),
            "kernel": (self.kernel, self.kernel, self.channels),
            "grad": (self.batch, out, out, self.channels),
        }
        keys = jax.random.split(jax.random.key(0), 3)
        return {
            name: jax.random.normal(key, shape, self.dtype)
            for key, (name, shape) in zip(keys, sizes.items(), strict=True)
        }


class Timed:
    """A compiled computation.

    Attributes:
      call: Starts the computation and returns its output.
      wait: Waits until an output of `call` is available.
      result: The output as a float32 NumPy array.
    """

    def __init__(self, call: Callable[[], Any], wait: Callable[[Any], None], result: np.ndarray):
        self.call, self.wait, self.result = call, wait, result

    def seconds(self, times: int) -> float:
        """Seconds per computation, when `times` of them are started in a row."""
        began = time.perf_counter()
        for _ in range(times):
            last = self.call()
        self.wait(last)
        return (time.perf_counter() - began) / times


def prepare(form: str, direction: str, case: Case, arrays: dict[str, jax.Array]) -> Timed:
    """Compiles a computation and runs it once.

    Args:
      form: One of `FORMS`.
      direction: One of `DIRECTIONS`.
      case: The shapes.
      arrays: `case.arrays()`.

    Raises:
      Exception: Any error of the form, its compiler or the device.
    """
    if form == "torch":
        return _torch(direction, case, arrays)
    function = _function(form, direction, case)
    names = {"forward": ("x", "kernel"), "input_grad": ("grad", "kernel")}
    operands = [arrays[name] for name in names.get(direction, ("x", "grad"))]
    compiled = jax.jit(function).lower(*operands).compile()
    call = functools.partial(compiled, *operands)
    return Timed(call, jax.block_until_ready, np.asarray(call().astype(jnp.float32)))


def _function(form: str, direction: str, case: Case) -> Callable[..., jax.Array]:
    if jax.default_backend() == "cpu" and form in ("shifted", "toeplitz"):
        return _cpu(form, direction, case)
    arguments = dict(case.shape)
    if direction == "input_grad":
        arguments["size"] = (case.side, case.side)
    if direction == "kernel_grad":
        arguments["window"] = (case.kernel, case.kernel)
    return functools.partial(getattr(depthwise_gpu.form(form), direction), **arguments)


def _cpu(form: str, direction: str, case: Case) -> Callable[..., jax.Array]:
    """A CPU form. `depthwise_cpu` chooses by map size; this overrides its choice."""
    toeplitz = form == "toeplitz"
    if toeplitz and (case.stride > 1 or case.side**2 > _TOEPLITZ_PIXELS):
        raise ValueError(f"only for stride 1 and maps of up to {_TOEPLITZ_PIXELS} pixels")
    backward = functools.partial(depthwise_cpu.backward, **case.shape)
    size = (case.batch, case.side, case.side, case.channels)
    window = (case.kernel, case.kernel, case.channels)
    # The compiler removes the gradient that is not returned.
    functions = {
        "forward": functools.partial(depthwise_cpu.forward, **case.shape),
        "input_grad": lambda grad, kernel: backward(jnp.zeros(size, grad.dtype), kernel, grad)[0],
        "kernel_grad": lambda x, grad: backward(x, jnp.zeros(window, x.dtype), grad)[1],
    }

    def run(*operands):
        with mock.patch.object(depthwise_cpu, "use_toeplitz", return_value=toeplitz):
            return functions[direction](*operands)

    return run


def _torch(direction: str, case: Case, arrays: dict[str, jax.Array]) -> Timed:
    """PyTorch's implementation: channels last, eager."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    dtype = getattr(torch, case.dtype)

    def tensor(name):
        array = torch.from_numpy(np.array(arrays[name].astype(jnp.float32))).to(device, dtype)
        if name == "kernel":
            return array.permute(2, 0, 1)[:, None].contiguous()
        return array.permute(0, 3, 1, 2)  # NHWC in memory is channels last.

    x, kernel, grad = (tensor(name) for name in ("x", "kernel", "grad"))
    stride, padding = [case.stride] * 2, [case.kernel // 2] * 2
    mask = [direction == name for name in ("input_grad", "kernel_grad")] + [False]

    def call():
        if direction == "forward":
            function = torch.nn.functional.conv2d
            return function(x, kernel, None, stride, padding, groups=case.channels)
        gradients = torch.ops.aten.convolution_backward(
            grad, x, kernel, None, stride, padding, [1, 1], False, [0, 0], case.channels, mask
        )
        return gradients[mask.index(True)]

    def wait(_):
        if device == "cuda":
            torch.cuda.synchronize()

    result = call().detach().float().cpu()
    if direction == "kernel_grad":
        return Timed(call, wait, result[:, 0].permute(1, 2, 0).numpy())
    return Timed(call, wait, result.permute(0, 2, 3, 1).numpy())
