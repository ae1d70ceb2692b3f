"""What a fast program does not do: copies that grow with the dataset, gathers of single elements.

Each function returns the operations of a compiled program at fault, so that a test can expect none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from bloodjax.planning.costs import Array, arrays
from bloodjax.planning.program import Operation, Program
from bloodjax.profiling import hlo

_SLICE_SIZES = re.compile(r"slice_sizes=\{([^}]*)\}")
_FLOATS = ("f32", "f64")
_CUDNN, _CUBLAS = "__cudnn$conv", "__cublas"


def grows_with(program: Program, num_images: int) -> list[Operation]:
    """Operations whose result grows with the dataset.

    Args:
      program: A training step, compiled for a resident dataset of `num_images`.
      num_images: Number of images, one that no other dimension of the step is a multiple of, such
        as 1,031; and large, as an array with fewer elements than that does not count.

    Returns:
      Operations with a result that has a dimension divisible by `num_images`. Labels and order are
      such arrays too, of four bytes per image.
    """
    return [
        op
        for op in program.operations
        if any(d and d % num_images == 0 for array in arrays(op.shape) for d in array.shape)
    ]


def small_gathers(
    program: Program, elements: int = 1, results: int = 1024
) -> list[tuple[Operation, hlo.Instruction]]:
    """Gathers of slices of at most `elements` elements, with at least `results` elements in all.

    A TPU gathers one slice at a time. Each is given with the operation that it is part of.
    """

    def is_small(instruction: hlo.Instruction) -> bool:
        sizes = _SLICE_SIZES.search(instruction.attributes)
        if instruction.opcode != "gather" or not sizes:
            return False
        size = math.prod(int(n) for n in sizes[1].split(",") if n)
        result = sum(math.prod(array.shape) for array in arrays(instruction.shape))
        return size <= elements and result >= results

    return _matching(program, is_small)


def float32_products(program: Program) -> list[tuple[Operation, hlo.Instruction]]:
    """Convolutions and matrix products with a float32 (or float64) operand.

    Those of constants and small vectors are included. The sum of a bfloat16 product in float32 is
    not: only the operands count.
    """
    instructions = program.text.instructions

    def is_float32(instruction: hlo.Instruction) -> bool:
        target = instruction.attributes if instruction.opcode == "custom-call" else ""
        if instruction.opcode not in ("convolution", "dot") and not (
            _CUDNN in target or _CUBLAS in target
        ):
            return False
        operands = [instructions[name] for name in instruction.operands[:2] if name in instructions]
        return any(a.dtype in _FLOATS for operand in operands for a in arrays(operand.shape))

    return _matching(program, is_float32)


def float32_maps(program: Program, batch_size: int, elements: int = 1 << 16) -> list[Operation]:
    """Operations that write a float32 map to memory: [batch, ...] of at least `elements` elements.

    Args:
      program: A compiled step with bfloat16 as its compute dtype.
      batch_size: Images of a batch on each device.
      elements: Size from which on a map counts.
    """

    def is_map(array: Array) -> bool:
        large = math.prod(array.shape) >= elements
        return array.dtype in _FLOATS and len(array.shape) == 4 and large

    return [
        op
        for op in program.operations
        if any(is_map(array) and batch_size in array.shape for array in arrays(op.shape))
    ]


def repeated_gathers(program: Program) -> list[Operation]:
    """All-gathers of an operand that was gathered before."""
    seen: set[str] = set()
    again = []
    for op in program.collectives:
        if op.collective != "all-gather":
            continue
        for operand in program.text.instructions[op.name].operands:
            source = _source(program.text, operand)
            if source in seen:
                again.append(op)
            seen.add(source)
    return again


def _source(text: hlo.Program, name: str) -> str:
    """The value that `name` is a copy or another dtype of."""
    seen = set()
    while name in text.instructions and name not in seen:
        seen.add(name)
        instruction = text.instructions[name]
        moves = ("copy", "bitcast", "convert", "copy-start", "copy-done", "get-tuple-element")
        if instruction.opcode not in moves or not instruction.operands:
            break
        name = instruction.operands[0]
    return name


def _matching(
    program: Program, matches: Callable[[hlo.Instruction], bool]
) -> list[tuple[Operation, hlo.Instruction]]:
    return [
        (op, instruction)
        for op in program.operations
        for instruction in program.instructions(op)
        if matches(instruction)
    ]
