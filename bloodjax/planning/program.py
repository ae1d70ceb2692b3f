"""What a compiled program runs: operations with cycles, bytes and operations, collectives, memory.

`analyse` reads it from the executable's text, which a TPU's compiler annotates with its estimate of
each operation's cycles. Bodies of loops count as often as they run, of a conditional the dearest
branch. Everything here is the compiler's figure or counted in its program; nothing was run.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from bloodjax.planning.costs import Costs, Traffic, arrays
from bloodjax.profiling import hlo

COLLECTIVES = frozenset(
    {
        *("all-reduce", "all-gather", "reduce-scatter", "all-to-all"),
        *("collective-permute", "collective-broadcast", "ragged-all-to-all"),
    }
)
# Instructions that name or view a value and cost nothing.
_FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
        *("partition-id", "replica-id", "opt-barrier", "add-dependency"),
    }
)
# Custom calls that only tell the compiler something.
_MARKERS = frozenset({"AssumeGatherIndicesInBound", "ConcatBitcast", "AllocateBuffer", "Sharding"})
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_DECLARED = re.compile(r'"cost_estimate":\{"flops":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CHAIN = re.compile(r'chain_id="(\d+)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CALLED = re.compile(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
# Groups of devices: {{0,1},{2,3}}, or [number of groups, devices in each]<=[...].
_GROUP = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_NUMBERED_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a compiled program, on one device.

    Attributes:
      name: Name of its instruction.
      opcode: "fusion", "convolution", "copy", ...
      target: Function of a custom call, such as "tpu_custom_call" (a Pallas kernel); otherwise "".
      shape: Shape of the result in XLA's notation.
      op_name: Name scopes and modules, joined by "/".
      source: "file:line" of the library that it comes from; empty if unknown.
      group: Part of the step; see `profiling.hlo.group`.
      stage: Stage of the step; see `profiling.hlo.stage`.
      runs: How often a call of the program runs it.
      cycles: The compiler's estimate for all runs; None if it makes none.
      traffic: Bytes that all runs read and write.
      flops: Operations of all runs, of convolutions and matrix products, or those that a Pallas
        kernel declares.
      collective: "all-gather", ...; empty if it moves nothing between devices.
      payload: Bytes that all runs of a collective combine on each device: of the larger of operand
        and result.
      participants: Devices that a collective is between; 0 for all.
    """

    name: str
    opcode: str
    target: str
    shape: str
    op_name: str
    source: str
    group: str
    stage: str
    runs: int
    cycles: int | None
    traffic: Traffic
    flops: int
    collective: str = ""
    payload: int = 0
    participants: int = 0

    @property
    def recomputed(self) -> bool:
        """Whether it computes again, to save memory, what was computed before."""
        return ".remat" in self.name or "rematted_computation" in self.op_name

    @property
    def is_kernel(self) -> bool:
        """Whether it is a Pallas kernel of a TPU."""
        return self.target == "tpu_custom_call"

    @property
    def copies(self) -> bool:
        """Whether it only copies, such as into another layout."""
        return self.opcode in ("copy", "transpose")

    @property
    def moves(self) -> bool:
        """Whether it moves data between memories, while other operations run."""
        return self.opcode in ("copy-start", "slice-start", "dynamic-slice-start")


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of a program on each device in bytes, as the compiler assigned it.

    Attributes:
      arguments: Its arguments.
      outputs: Its results, without those that take the place of an argument.
      temporaries: What it needs while it runs.
      code: The program itself.
      peak: The most at any time, with arguments and results.
    """

    arguments: int
    outputs: int
    temporaries: int
    code: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program as one device runs it.

    Attributes:
      text: The parsed text.
      operations: Its operations in order.
      memory: Its memory; None if it was read from text alone.
      loops: Names of loops with an unknown number of iterations, which count once.
    """

    text: hlo.Program
    operations: tuple[Operation, ...]
    memory: Memory | None
    loops: tuple[str, ...]

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of all operations together; None if it makes none."""
        known = [op.cycles for op in self.operations if op.cycles is not None]
        return sum(known) if known else None

    @property
    def traffic(self) -> Traffic:
        """Bytes that all operations read and write."""
        return sum((op.traffic for op in self.operations), Traffic())

    @property
    def flops(self) -> int:
        """Operations of all convolutions, matrix products and Pallas kernels."""
        return sum(op.flops for op in self.operations)

    @property
    def collectives(self) -> tuple[Operation, ...]:
        """The operations that move data between devices."""
        return tuple(op for op in self.operations if op.collective)

    @property
    def without_estimate(self) -> tuple[Operation, ...]:
        """Operations for which a compiler that estimates cycles gives none, but for copies."""
        if self.cycles is None:
            return ()
        return tuple(
            op
            for op in self.operations
            if op.cycles is None and (op.collective or op.opcode == "custom-call")
        )

    def by(self, key: Callable[[Operation], str]) -> dict[str, dict[str, int]]:
        """Number, cycles and bytes of the operations by `key`, the most expensive first."""
        sums: dict[str, collections.Counter] = {}
        for op in self.operations:
            total = sums.setdefault(key(op), collections.Counter())
            total["operations"] += op.runs
            total["cycles"] += op.cycles or 0
            total["bytes"] += op.traffic.total
            total["main_bytes"] += op.traffic.main
            total["flops"] += op.flops
        order = sorted(sums, key=lambda k: (-sums[k]["cycles"], -sums[k]["bytes"], k))
        fields = ("operations", "cycles", "bytes", "main_bytes", "flops")
        return {k: {field: sums[k][field] for field in fields} for k in order}

    def instructions(self, operation: Operation) -> Iterator[hlo.Instruction]:
        """The instruction of an operation, and with a fusion all that it consists of."""
        yield from hlo.inner(self.text, operation.name)


def analyse(compiled: Any, layer_types: Mapping[str, str] | None = None) -> Program:
    """Reads a compiled program.

    Args:
      compiled: A `jax.stages.Compiled`.
      layer_types: Path of a module -> its layer type; see `models.summary.layer_types`.
    """
    return dataclasses.replace(
        from_text(compiled.as_text(), layer_types), memory=memory(compiled.memory_analysis())
    )


def from_text(text: str, layer_types: Mapping[str, str] | None = None) -> Program:
    """`analyse` for a program's text, without its memory."""
    parsed = hlo.parse(text)
    walk = _Walk(parsed, layer_types or {})
    operations = walk.operations(parsed.entry, 1) if parsed.entry else []
    return Program(parsed, tuple(operations), None, tuple(walk.loops))


def memory(stats: Any) -> Memory:
    """The memory that `jax.stages.Compiled.memory_analysis` gives.

    The peak is the sum of the parts. JAX's own `peak_memory_in_bytes` is the same for a GPU; for a
    TPU it includes maps in on-chip memory.
    """
    outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes
    code = stats.generated_code_size_in_bytes
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=outputs,
        temporaries=stats.temp_size_in_bytes,
        code=code,
        peak=stats.argument_size_in_bytes + outputs + stats.temp_size_in_bytes + code,
    )


class _Walk:
    """Walks through what a program runs.

    Attributes:
      loops: Names of loops with an unknown number of iterations.
    """

    def __init__(self, program: hlo.Program, layer_types: Mapping[str, str]):
        self.loops: list[str] = []
        self._program, self._layer_types = program, layer_types
        self._costs = Costs(program)
        self._chains: set[tuple[str, str]] = set()  # of the collectives so far

    def operations(self, computation: str, runs: int) -> list[Operation]:
        """The operations of a computation that runs `runs` times."""
        found = []
        for name in self._program.computations[computation].instructions:
            found += self._operations_of(name, runs)
        return found

    def _operations_of(self, name: str, runs: int) -> Sequence[Operation]:
        instruction = self._program.instructions[name]
        opcode, attributes = instruction.opcode, instruction.attributes
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            return ()
        if opcode == "while":
            trips = self._trips(instruction)
            if trips is None:
                self.loops.append(name)
            body = re.search(r"body=%?([\w.\-]+)", attributes)[1]
            return self.operations(body, runs * (1 if trips is None else trips))
        if opcode == "conditional":
            branches = [self.operations(branch, runs) for branch in _branches(attributes)]
            return max(branches, key=_weight, default=())
        if opcode in ("call", "async-start"):
            called = _CALLED.search(attributes)
            return self.operations(called[1], runs) if called else ()
        target = _TARGET.search(attributes)
        if target and target[1] in _MARKERS:
            return ()
        return (self._operation(name, instruction, runs),)

    def _operation(self, name: str, instruction: hlo.Instruction, runs: int) -> Operation:
        cycles = _CYCLES.search(instruction.attributes)
        target = _TARGET.search(instruction.attributes)
        declared = _DECLARED.search(instruction.attributes)
        traffic = self._costs.traffic(name)
        collective, payload = self._collective(name, instruction, traffic.total)
        return Operation(
            name=name,
            opcode=instruction.opcode,
            target=target[1] if target else "",
            shape=instruction.shape,
            op_name=instruction.op_name,
            source=instruction.source,
            group=hlo.group(instruction, self._layer_types),
            stage=hlo.stage(instruction),
            runs=runs,
            cycles=int(cycles[1]) * runs if cycles else None,
            traffic=Traffic(traffic.total * runs, traffic.main * runs),
            flops=(int(declared[1]) if declared else self._costs.flops(name)) * runs,
            collective=collective,
            payload=payload * runs,
            participants=self._participants(name) if collective else 0,
        )

    def _participants(self, name: str) -> int:
        """Devices in a group of a collective; 0 if its text lists no groups, which means all."""
        for each in hlo.inner(self._program, name):
            listed = _GROUP.search(each.attributes)
            if listed:
                return listed[1].count(",") + 1
            numbered = _NUMBERED_GROUPS.search(each.attributes)
            if numbered:
                return int(numbered[1])
        return 0

    def _collective(self, name: str, instruction: hlo.Instruction, traffic: int) -> tuple[str, int]:
        """Kind and payload of a collective; ("", 0) of other operations."""
        inner = list(hlo.inner(self._program, name))
        opcodes = [each.opcode.removesuffix("-start") for each in inner]
        found = [i for i, opcode in enumerate(opcodes) if opcode in COLLECTIVES]
        if not found:
            return "", 0
        kind, first = opcodes[found[0]], inner[found[0]]
        chain = _CHAIN.search(first.attributes)
        if chain:
            # A TPU continues one asynchronous collective within several fusions.
            if (kind, chain[1]) in self._chains:
                return "", 0
            self._chains.add((kind, chain[1]))
        read = self._bytes(first.operands)
        payload = max(read, traffic - read)
        if first is not instruction:
            payload = max(read, sum(array.bytes for array in arrays(first.shape)))
        # A TPU's reduce-scatter is a fusion of an all-reduce and a slice of its result.
        scatters = "all-reduce" in opcodes and "dynamic-slice" in opcodes
        return "reduce-scatter" if scatters else kind, payload

    def _bytes(self, names: Sequence[str]) -> int:
        shapes = [self._program.instructions[name].shape for name in names]
        return sum(array.bytes for shape in shapes for array in arrays(shape))

    def _trips(self, loop: hlo.Instruction) -> int | None:
        """Iterations of a loop; None if they depend on what it computes."""
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        condition = self._program.computations.get(condition[1]) if condition else None
        root = self._program.instructions.get(condition.root) if condition else None
        if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        counter, limit = root.operands
        end = self._constant(limit, loop)
        start = self._constant(counter, loop)
        # `jax.lax.scan` counts from zero. A copied or fused zero is not seen here.
        return None if end is None else max(0, end - (start or 0))

    def _constant(self, name: str, loop: hlo.Instruction | None = None) -> int | None:
        """The value of an integer constant; of an element of `loop`'s state, before the loop."""
        instruction = self._program.instructions.get(name)
        while instruction and instruction.opcode in ("copy", "bitcast", "convert", "copy-done"):
            instruction = self._program.instructions.get(instruction.operands[0])
        if instruction is None:
            return None
        if instruction.opcode == "constant":
            return int(instruction.text) if re.fullmatch(r"-?\d+", instruction.text) else None
        if instruction.opcode == "get-tuple-element" and loop is not None:
            index = re.search(r"index=(\d+)", instruction.attributes)
            initial = self._program.instructions.get(loop.operands[0])
            if index and initial is not None and initial.opcode == "tuple":
                return self._constant(initial.operands[int(index[1])])
        return None


def _branches(attributes: str) -> list[str]:
    several = _BRANCHES.search(attributes)
    if several:
        return [name.lstrip("%") for name in re.split(r",\s*", several[1])]
    return [
        found[1] for found in re.finditer(r"(?:true|false)_computation=%?([\w.\-]+)", attributes)
    ]


def _weight(operations: Sequence[Operation]) -> tuple[int, int]:
    cycles = sum(op.cycles or 0 for op in operations)
    return cycles, sum(op.traffic.total for op in operations)
