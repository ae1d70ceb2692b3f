"""Bytes and floating-point operations of an instruction in a compiled program's text.

Bytes are those of the arrays that an instruction reads and writes, without the padding of the
compiler's tiles. Of an array that is only sliced or gathered from, the part that is read counts.
"""

from __future__ import annotations

import dataclasses
import math
import re

from bloodjax.profiling import hlo

_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_SLICES = frozenset({"slice", "dynamic-slice", "gather"})
_CONV = re.compile(r"dim_labels=([0-9a-z?]+)_([0-9a-z?]+)->([0-9a-z?]+)")
_TARGET = re.compile(r'custom_call_target="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in XLA's notation.

    Attributes:
      dtype: Such as "bf16".
      shape: Its dimensions.
      space: Memory space; 0 is the device's main memory, 1 on a TPU its on-chip memory.
    """

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        """Size without padding."""
        return -(-math.prod(self.shape) * _bits(self.dtype) // 8)


def arrays(shape: str) -> list[Array]:
    """The arrays of a result, `hlo.Instruction.shape`; several for a tuple."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        space = _SPACE.search(layout)
        dims = tuple(int(n) for n in dims.split(",") if n)
        found.append(Array(dtype, dims, int(space[1]) if space else 0))
    return found


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    digits = re.match(r"[a-z]+(\d+)", dtype)  # f32, s8, u4, f8e4m3fn
    return int(digits[1]) if digits else 0


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes that an instruction reads and writes.

    Attributes:
      total: In all memories.
      main: In the device's main memory: without the on-chip memory of a TPU.
    """

    total: int = 0
    main: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(self.total + other.total, self.main + other.main)


class Costs:
    """The costs of the instructions of one program."""

    def __init__(self, program: hlo.Program):
        self._program = program
        self._users: dict[str, list[str]] = {}
        self._done: dict[str, str] = {}  # an asynchronous instruction -> its end
        for name, instruction in program.instructions.items():
            for operand in instruction.operands:
                self._users.setdefault(operand, []).append(name)
            if instruction.opcode.endswith("-done") and instruction.operands:
                self._done[instruction.operands[0]] = name

    def traffic(self, name: str) -> Traffic:
        """What one execution of an instruction reads and writes."""
        instruction = self._program.instructions[name]
        computation = hlo.fused(self._program, instruction)
        total = self._written(name, computation)
        for position, operand in enumerate(instruction.operands):
            total += self._read(name, operand, position, computation)
        return total

    def flops(self, name: str) -> int:
        """Operations of the convolutions and matrix products in an instruction."""
        instruction = self._program.instructions[name]
        computation = hlo.fused(self._program, instruction)
        if computation:
            return sum(self.flops(each) for each in computation.instructions)
        operands = [self._arrays(operand) for operand in instruction.operands]
        if any(not each for each in operands):
            return 0
        first = [each[0] for each in operands]
        result = arrays(instruction.shape)
        match instruction.opcode:
            case "dot":
                return _dot(first, result[0], instruction.attributes)
            case "convolution":
                return _convolution(first[0], first[1], result[0], instruction.attributes)
            case "custom-call":
                return _custom(first, result, instruction.attributes)
        return 0

    def _arrays(self, name: str) -> list[Array]:
        instruction = self._program.instructions.get(name)
        return arrays(instruction.shape) if instruction else []

    def _written(self, name: str, computation: hlo.Computation | None) -> Traffic:
        instruction = self._program.instructions[name]
        result = self._arrays(self._done.get(name, name))
        if instruction.opcode == "dynamic-update-slice":
            return _sum(self._arrays(instruction.operands[1]))
        if computation is None or instruction.opcode != "fusion" or not computation.root:
            return _sum(result)
        root = self._program.instructions[computation.root]
        roots = root.operands if root.opcode == "tuple" else (computation.root,)
        if len(roots) != len(result):
            return _sum(result)
        total = Traffic()
        for array, each in zip(result, roots, strict=True):
            total += _within(self._update(each), array)
        return total

    def _update(self, name: str) -> int | None:
        """Bytes that a fusion's root writes, if it updates a slice of one of its operands."""
        instruction = self._program.instructions.get(name)
        while instruction and instruction.opcode == "bitcast" and instruction.operands:
            instruction = self._program.instructions.get(instruction.operands[0])
        if instruction and instruction.opcode == "dynamic-update-slice":
            return sum(array.bytes for array in self._arrays(instruction.operands[1]))
        return None

    def _read(
        self, name: str, operand: str, position: int, computation: hlo.Computation | None
    ) -> Traffic:
        read = _sum(self._arrays(operand))
        opcode = self._program.instructions[name].opcode.removesuffix("-start")
        if opcode == "dynamic-update-slice" and position == 0:
            return Traffic()
        if opcode in _SLICES and position == 0:
            part = self._arrays(self._done.get(name, name))
            return _limited(read, sum(array.bytes for array in part))
        parameter = self._parameter(computation, position)
        return _limited(read, self._used(parameter)) if parameter else read

    def _used(self, name: str) -> int:
        """Bytes of a value in a fused computation that its users read."""
        full = sum(array.bytes for array in self._arrays(name))
        used = 0
        for user in self._users.get(name, ()):
            instruction = self._program.instructions[user]
            position = instruction.operands.index(name)
            if instruction.opcode in _SLICES and position == 0:
                used += sum(array.bytes for array in arrays(instruction.shape))
            elif instruction.opcode == "bitcast":
                used += self._used(user)
            elif instruction.opcode == "fusion" and (
                parameter := self._parameter(hlo.fused(self._program, instruction), position)
            ):
                used += self._used(parameter)
            elif not (instruction.opcode == "dynamic-update-slice" and position == 0):
                return full
        return min(full, used)

    def _parameter(self, computation: hlo.Computation | None, position: int) -> str:
        """Name of a parameter of a computation; "" if there is none."""
        for name in computation.instructions if computation else ():
            instruction = self._program.instructions[name]
            if instruction.opcode == "parameter" and instruction.text.strip() == str(position):
                return name
        return ""


def _sum(found: list[Array]) -> Traffic:
    return Traffic(
        sum(array.bytes for array in found),
        sum(array.bytes for array in found if array.space == 0),
    )


def _limited(read: Traffic, limit: int) -> Traffic:
    return Traffic(min(read.total, limit), min(read.main, limit))


def _within(limit: int | None, array: Array) -> Traffic:
    whole = _sum([array])
    return whole if limit is None else _limited(whole, limit)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]


def _dot(operands: list[Array], result: Array, attributes: str) -> int:
    contracted = re.search(r"lhs_contracting_dims=\{([^}]*)\}", attributes)
    dims = _numbers(contracted[1]) if contracted else []
    return 2 * math.prod(result.shape) * math.prod(operands[0].shape[d] for d in dims)


def _custom(operands: list[Array], result: list[Array], attributes: str) -> int:
    target = _TARGET.search(attributes)
    target = target[1] if target else ""
    if target.startswith("__cublas"):
        found = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', attributes)
        dims = _numbers(found[1]) if found else []
        return 2 * math.prod(result[0].shape) * math.prod(operands[0].shape[d] for d in dims)
    if not target.startswith("__cudnn$conv"):
        return 0
    if "BackwardInput" in target:
        return _convolution(result[0], operands[1], operands[0], attributes)
    if "BackwardFilter" in target:
        return _convolution(operands[0], result[0], operands[1], attributes)
    return _convolution(operands[0], operands[1], result[0], attributes)


def _convolution(image: Array, kernel: Array, out: Array, attributes: str) -> int:
    """Two operations for each product with an element of the image that is not padding."""
    labels = _CONV.search(attributes)
    if not labels:
        return 0
    of_image, of_kernel, of_out = labels.groups()
    total = 2
    for letter, labels, array in (("b", of_out, out), ("f", of_out, out), ("i", of_kernel, kernel)):
        total *= array.shape[labels.index(letter)] if letter in labels else 1
    window = re.search(r"window=\{([^}]*)\}", attributes)
    options = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
    spatial = sorted(set(re.findall(r"\d", of_kernel)))

    def option(name: str, dim: int, default: str) -> str:
        values = options[name].split("x") if name in options else []
        return values[dim] if len(values) == len(spatial) else default

    for dim, label in enumerate(spatial):
        total *= _products(
            size=image.shape[of_image.index(label)],
            kernel=kernel.shape[of_kernel.index(label)],
            out=out.shape[of_out.index(label)],
            stride=int(option("stride", dim, "1")),
            before=int(option("pad", dim, "0_0").split("_")[0]),
            spread=int(option("lhs_dilate", dim, "1")),
            apart=int(option("rhs_dilate", dim, "1")),
        )
    return total


def _products(size, kernel, out, stride, before, spread, apart) -> int:
    """Pairs of an output and a kernel position along one dimension that hit an element."""
    count = 0
    for k in range(kernel):
        offset = k * apart - before
        for o in range(out):
            at = o * stride + offset
            count += 0 <= at <= (size - 1) * spread and at % spread == 0
    return count
