"""Compiles one contender's training step for a machine that need not exist, in this process.

Called by benchmarks/compiled.py with one JSON object, {"contender": ..., "target": ..., "task":
{...}, "known": ..., "text": ...}. It prints one JSON object: `content`, a checksum of the lowered
step and of what compiles it, and, unless that is `known`, the compiler's figures (see `figures`).
With {"target": ..., "kernels": [...]} it prints the cycles of Pallas kernels, each by itself (see
`kernel_cycles`).
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import importlib
import json
import math
import os
import pathlib
import re
import sys
import tempfile
import time
from typing import Any

import jax

from benchmarks.tasks import Task
from bloodjax.ops import channels_mosaic, depthwise_silu_mosaic, map_norm
from bloodjax.planning import compilers, machines, program
from bloodjax.planning.costs import arrays

# Contender -> its module in benchmarks/contenders, and arguments of `lower` besides the task.
_CONTENDERS: dict[str, tuple[str, dict[str, str]]] = {
    "bloodjax": ("ours", {}),
    "bloodjax_batchnorm": ("ours", {"freeze": "none"}),
    "keras": ("keras_applications", {}),
    "flax": ("flax_linen", {}),
}


_SIMULATED = re.compile(r'"bundle_analysis_data":\{"estimated_cycles":"(\d+)"')


def compile_step(
    contender: str, target: str, task: dict[str, Any], known: str = "", text: str = ""
) -> dict[str, Any]:
    """Lowers a step, and compiles it unless nothing has changed.

    Args:
      contender: one of `compiled.CONTENDERS`.
      target: name of a machine of `bloodjax.planning.machines`.
      task: fields of a `Task`.
      known: the `content` of the last result, or "".
      text: file for the compiled program's text, or "".

    Returns:
      `content`, and, unless it is `known`, `jax` and `compiler` (versions), `compile_seconds` and
      what `figures` has.
    """
    machine = machines.machine(target)
    compilers.prepare(machine)
    os.environ["KERAS_BACKEND"] = "jax"
    name, options = _CONTENDERS[contender]
    module = importlib.import_module(f"benchmarks.contenders.{name}")
    task = Task(**task)
    lowered = module.lower(task, machine, compilers.devices(machine), **options)
    compiler = compilers.version(machine)
    content = "\n".join((target, compiler, jax.__version__, lowered.as_text()))
    content = hashlib.sha256(content.encode()).hexdigest()[:16]
    if content == known:
        return {"content": content}
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    if text:
        pathlib.Path(text).write_text(compiled.as_text(), "utf-8")
    found = figures(compiled)
    if contender.startswith("bloodjax"):
        found["peak_bytes"] -= module.resident_bytes(task)
    about = {"content": content, "jax": jax.__version__, "compiler": compiler}
    return {**about, "compile_seconds": round(seconds, 1), **found}


def figures(compiled: Any) -> dict[str, Any]:
    """What the compiler says of a compiled step; see `bloodjax.planning.program`.

    Returns:
      `cycles`: its estimate, or None.
      `calls_without_cycles`: custom calls, such as Pallas kernels, that the estimate leaves out.
      `kernels_of_ours`: those of them that `kernel_cycles` can compile, each as often as it runs.
      `bytes`: read and written by all operations, by the compiler's count where it makes one.
      `peak_bytes`: memory of a device for arguments, results and temporaries.
      `flops`: of convolutions and matrix products.
      `kernels`: number of operations by `kind`.
      `float32_convolutions`: convolutions with a float32 operand.
      `copies`, `copied_bytes`: copies and transposes, and what they read and write.
    """
    found = program.analyse(compiled)
    memory = found.memory
    kernels = collections.Counter(kind(found, operation) for operation in found.operations)
    copied = [operation for operation in found.operations if operation.copies]
    counted = (compiled.cost_analysis() or {}).get("bytes accessed")
    return {
        "cycles": found.cycles,
        "calls_without_cycles": len(found.without_estimate),
        "kernels_of_ours": kernel_cases(found),
        "bytes": counted or found.traffic.total,
        "peak_bytes": memory.arguments + memory.outputs + memory.temporaries,
        "flops": found.flops,
        "kernels": dict(kernels),
        "float32_convolutions": float32_convolutions(found),
        "copies": len(copied),
        "copied_bytes": sum(operation.traffic.total for operation in copied),
    }


def kind(found: program.Program, operation: program.Operation) -> str:
    """The kind of kernel: "cudnn", "cublas", "triton", "fusion", "copy" or "other".

    "triton" are the fusions that XLA's GPU compiler writes in Triton, and Pallas kernels.
    """
    attributes = found.text.instructions[operation.name].attributes
    for library in ("cudnn", "cublas", "triton"):
        if library in operation.target or f'"kind":"__{library}' in attributes:
            return library
    if operation.copies:
        return "copy"
    return "fusion" if operation.opcode == "fusion" else "other"


def kernel_cases(found: program.Program) -> list[list]:
    """Our TPU kernels in a step, as `kernel_cycles` takes them.

    Returns:
      For each kernel that runs, of the depthwise convolution: direction, kernel size, stride, side
      of the input map, channels, batch and dtype. Of `ops.depthwise_silu`: "silu",
      "silu_input_grad" or "silu_kernel_grad", and the same but for the dtype. Of
      `ops.residual_mlp`: "residual_mlp" or "residual_mlp_grad", rows, rows of a block, channels and
      hidden channels. Of `ops.map_norm`: "layer_norm" or "layer_norm_grad", rows and channels.
    """
    cases = []
    for operation in found.operations:
        name = re.search(
            r"/(depthwise(?:_silu)?(?:_input_grad(?:_added)?|_kernel_grad)?|residual_mlp(?:_grad)?|layer_norm(?:_grad)?)"
            "/pallas_call",
            operation.op_name,
        )
        if not operation.is_kernel or not name:
            continue
        operands = found.text.instructions[operation.name].operands
        shapes = [arrays(found.text.instructions[each].shape)[0] for each in operands]
        first, second = shapes[:2]
        if name[1].startswith("residual_mlp"):
            # A batch of as many images as a block has rows has the same kernel.
            block, hidden = shapes[2].shape[0], shapes[4].shape[1]
            cases += [[name[1], first.shape[0], block, first.shape[1], hidden]] * operation.runs
            continue
        result = arrays(operation.shape)[0]
        if name[1].startswith("layer_norm"):
            cases += [[name[1], *first.shape]] * operation.runs
            continue
        direction = name[1].removeprefix("depthwise").removeprefix("_") or "forward"
        if direction.startswith("silu"):
            image, kernel = (first, shapes[2]) if direction == "silu" else (shapes[3], shapes[-1])
            kernel = result if direction == "silu_kernel_grad" else kernel
            output = result if direction == "silu" else first
            case = [direction, math.isqrt(kernel.shape[0]), round(image.shape[0] / output.shape[0])]
            cases += [[*case, image.shape[0], image.shape[3], image.shape[2]]] * operation.runs
            continue
        image, output, kernel = {
            "forward": (first, result, second),
            "input_grad": (result, first, second),
            "input_grad_added": (result, first, second),
            "kernel_grad": (first, second, result),
        }[direction]
        side, _, batch, channels = image.shape
        dtype = {"bf16": "bfloat16", "f32": "float32"}[image.dtype]
        case = [direction, math.isqrt(kernel.shape[0]), round(side / output.shape[0]), side]
        cases += [[*case, channels, batch, dtype]] * operation.runs
    return cases


def kernel_cycles(target: str, kernels: list[list]) -> dict[str, Any]:
    """Cycles of kernels by the compiler's simulation of its schedule.

    The simulation fails on a program that is as large as a step, so each kernel is compiled by
    itself.

    Args:
      target: name of a TPU.
      kernels: different elements of `kernel_cases`.

    Returns:
      `cycles`: one number for each, None where the simulation gives none.
    """
    machine = machines.machine(target)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_static_llo_profile_to={folder}"
        compilers.prepare(machine)
        from benchmarks import depthwise_compiled, depthwise_forms

        device = compilers.devices(machine)[0]
        found = []
        for direction, *numbers in kernels:
            if direction.startswith("residual_mlp"):
                text = _residual_mlp(direction, *numbers, device)
            elif direction.startswith("layer_norm"):
                text = _layer_norm(direction, *numbers, device)
            elif direction.startswith("silu"):
                text = _between_silus(direction, *numbers, device)
            else:
                case = depthwise_forms.Case(*numbers)
                text = depthwise_compiled.compiled_text("mosaic", direction, case, device)
            lines = [line for line in text.splitlines() if "tpu_custom_call" in line]
            simulated = [_SIMULATED.search(line) for line in lines]
            found.append(sum(int(n[1]) for n in simulated) if all(simulated) else None)
    return {"cycles": found}


def _residual_mlp(
    name: str, rows: int, block: int, channels: int, hidden: int, device: jax.Device
) -> str:
    """The program of a kernel of `ops.residual_mlp`."""
    sharding = jax.sharding.SingleDeviceSharding(device)

    def shaped(*shape, dtype="float32"):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    image = shaped(rows // block, block, channels, dtype="bfloat16")
    weights = [
        shaped(channels),
        shaped(channels, hidden, dtype="bfloat16"),
        shaped(hidden),
        shaped(hidden, channels, dtype="bfloat16"),
    ]

    def run(first, x, *rest):
        first, x = (a[:, None].transpose(2, 0, 1, 3) for a in (first, x))
        function = channels_mosaic.forward if forward else channels_mosaic.backward
        found = function(first, x, *rest, epsilon=1e-6, block=block)
        return jax.tree.map(lambda a: a.transpose(1, 2, 0, 3) if a.ndim == 4 else a, found)

    forward = name == "residual_mlp"
    rest = [*weights, *([shaped(channels)] if forward else []), shaped(block)]
    return jax.jit(run).lower(image, image, *rest).compile().as_text()


def _layer_norm(name: str, rows: int, channels: int, device: jax.Device) -> str:
    """The program of a kernel of `ops.map_norm`, with the block of a batch of 64."""
    sharding = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((rows, 1, 1, channels), "bfloat16", sharding=sharding)
    one = jax.ShapeDtypeStruct((channels,), "float32", sharding=sharding)
    forward = name == "layer_norm"
    function = channels_mosaic.norm_forward if forward else channels_mosaic.norm_backward
    block = map_norm.block_rows(rows, 64, channels)
    function = functools.partial(function, block=block, epsilon=1e-6)
    operands = (x, one, one) if forward else (x, x, one)
    return jax.jit(function).lower(*operands).compile().as_text()


def _between_silus(
    name: str, kernel: int, stride: int, side: int, channels: int, batch: int, device: jax.Device
) -> str:
    """The program of a kernel of `ops.depthwise_silu` whose input goes through SiLU, too."""
    sharding = jax.sharding.SingleDeviceSharding(device)

    def shaped(*shape, dtype="bfloat16"):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    out = -(-side // stride)
    total = max((out - 1) * stride + kernel - side, 0)  # as TensorFlow's SAME
    padding = ((total // 2, total - total // 2),) * 2
    options = {"stride": stride, "padding": padding, "silu": True}
    x, weights = shaped(side, side, batch, channels), shaped(kernel, kernel, channels)
    y, wide = shaped(out, out, batch, channels), functools.partial(shaped, dtype="float32")

    def as_map(a):
        return a.transpose(2, 0, 1, 3)

    def as_rows(a):
        return a.transpose(1, 2, 0, 3) if a.ndim == 4 and len(a) == batch else a

    def forward(x, shift, weights, offset):
        found = depthwise_silu_mosaic.forward(as_map(x), shift, weights, offset, **options)
        return [as_rows(a) for a in found]

    def backward(y, y_grad, mean_grad, x, shift, weights):
        maps = [as_map(a) for a in (y, y_grad)]
        found = depthwise_silu_mosaic.backward(
            *maps, mean_grad, as_map(x), shift, weights, **options
        )
        # What is not returned is not computed.
        return (as_rows(found[0]), found[1]) if name == "silu_input_grad" else found[2:]

    if name == "silu":
        lowered = jax.jit(forward).lower(x, wide(channels), weights, wide(channels))
    else:
        operands = (y, y, wide(batch, channels), x, wide(channels), weights)
        lowered = jax.jit(backward).lower(*operands)
    return lowered.compile().as_text()


def float32_convolutions(found: program.Program) -> int:
    """Number of convolutions of maps that have a float32 operand.

    A TPU's matrix products are convolutions too; those of the classifier are in float32 on purpose.
    """
    count = 0
    for operation in found.operations:
        for instruction in found.instructions(operation):
            if instruction.opcode != "convolution" and "__cudnn$conv" not in operation.target:
                continue
            inputs = [found.text.instructions.get(name) for name in instruction.operands]
            shapes = [a for each in inputs if each for a in arrays(each.shape)]
            maps = [array for array in shapes if len(array.shape) >= 4]
            count += any(array.dtype == "f32" for array in maps)
    return count


def main() -> None:
    """Compiles what the command line asks for."""
    request, answers = json.loads(sys.argv[1]), sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # Libraries may print.
        answer = (kernel_cycles if "kernels" in request else compile_step)(**request)
    print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
