"""Parses a compiled step's HLO text, and assigns each instruction to a part of the step.

The text (`jax.stages.Compiled.as_text()`) has, for most instructions, the name scopes and modules
that they were traced under, and the stack of source lines. A fusion has only those of its last
operation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence

CONTAINERS = frozenset({"while", "conditional", "call"})
"""Opcodes that only run other instructions, whose time the trace has separately."""

_NETWORK = "Network"  # the scope of the network with its head
# `jax.named_scope` -> part of a training step outside the network.
_PARTS = {
    "input": "augmentation and input",
    "augment": "augmentation and input",
    "normalise": "augmentation and input",
    "loss": "loss and metrics",
    "metrics": "loss and metrics",
    "optimizer": "optimiser",
}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLS = re.compile(r"calls=%?([\w.\-]+)")
_OPCODE = re.compile(r"\s([a-z][a-z0-9\-]*)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_WRAPPED = re.compile(r"(\w+)\((.*)\)")
_TRANSFORMS = frozenset({"jvp", "transpose", "vmap", "remat", "checkpoint"})
_OURS = re.compile(r"[/\\]bloodjax[/\\](?!.*site-packages)")
_PACKAGES = re.compile(r"(?:site|dist)-packages[/\\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction of a compiled program.

    Attributes:
      opcode: "fusion", "dot", "while", ...
      shape: Shape of the result in XLA's notation.
      op_name: Name scopes and modules, joined by "/"; empty if the compiler added the instruction.
      source: "file:line" of the innermost frame in this library, or of the innermost frame if none
        is; empty if unknown.
      operands: Names of the instructions whose results it takes.
      text: What the parentheses after the opcode contain, such as the value of a constant.
      attributes: The text after the operands: called computations, metadata, backend_config.
    """

    opcode: str
    shape: str
    op_name: str = ""
    source: str = ""
    operands: tuple[str, ...] = ()
    text: str = ""
    attributes: str = ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation of a compiled program: its instructions' names in order, and its root's."""

    instructions: tuple[str, ...]
    root: str = ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      name: Name of the HLO module.
      instructions: The instructions of all computations by name.
      computations: The computations by name.
      entry: Name of the computation that runs first; empty if the text has none.
    """

    name: str
    instructions: Mapping[str, Instruction]
    computations: Mapping[str, Computation] = dataclasses.field(default_factory=dict)
    entry: str = ""


def parse(text: str) -> Program:
    """Parses a compiled program's text; lines of unknown form are skipped."""
    head = re.match(r"HloModule ([\w.\-]+)", text)
    sources = _sources(text)
    instructions: dict[str, Instruction] = {}
    names: dict[str, list[str]] = {}  # The instructions of each computation.
    roots: dict[str, str] = {}
    last_named: dict[str, Instruction] = {}  # The last one of each computation.
    computation = entry = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            computation = found[2]
            entry = computation if found[1] else entry
        elif found := _INSTRUCTION.match(line):
            is_root, name, rest = found.groups()
            instruction = _instruction(rest, sources)
            if instruction is None:
                continue
            called = _CALLS.search(instruction.attributes)
            if called and called[1] in last_named and not instruction.op_name:
                inner = last_named[called[1]]
                instruction = dataclasses.replace(
                    instruction, op_name=inner.op_name, source=inner.source
                )
            instructions[name] = instruction
            names.setdefault(computation, []).append(name)
            if is_root:
                roots[computation] = name
            if "/" in instruction.op_name:
                last_named[computation] = instruction
    computations = {key: Computation(tuple(n), roots.get(key, "")) for key, n in names.items()}
    return Program(head[1] if head else "", instructions, computations, entry)


def _instruction(text: str, sources: Mapping[int, str]) -> Instruction | None:
    """Parses the part after the equals sign: shape, opcode, operands, attributes."""
    opcode = _OPCODE.search(text)
    if opcode is None:
        return None
    end = _closing(text, opcode.end())
    inside, attributes = text[opcode.end() : end], text[end + 1 :].lstrip(", ")
    op_name, frame = _OP_NAME.search(attributes), _FRAME.search(attributes)
    return Instruction(
        opcode=opcode[1],
        shape=text[: opcode.start()],
        op_name=op_name[1] if op_name else "",
        source=sources.get(int(frame[1]), "") if frame else "",
        operands=tuple(_OPERAND.findall(inside)),
        text=inside,
        attributes=attributes,
    )


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one before `start`; the end if there is none."""
    depth = 1
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


def _sources(text: str) -> dict[int, str]:
    """Stack frame -> source line, from the tables at the head of the text."""
    files = {
        int(i): path
        for i, path in re.findall(r'^(\d+) "([^"]*)"$', _table(text, "FileNames"), re.M)
    }
    lines = {
        int(i): (files.get(int(file), ""), line)
        for i, file, line in re.findall(
            r"^(\d+) \{file_name_id=(\d+).*? line=(\d+)", _table(text, "FileLocations"), re.M
        )
    }
    frames = {
        int(i): (int(location), int(parent or 0))
        for i, location, parent in re.findall(
            r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?",
            _table(text, "StackFrames"),
            re.M,
        )
    }
    return {frame: _source_line(frame, frames, lines) for frame in frames}


def _table(text: str, title: str) -> str:
    found = re.search(rf"^{title}\n((?:\d.*\n)*)", text, re.MULTILINE)
    return found[1] if found else ""


def _source_line(frame, frames, lines) -> str:
    innermost, seen = "", set()
    while frame in frames and frame not in seen:
        seen.add(frame)
        location, frame = frames[frame]
        path, line = lines.get(location, ("", ""))
        in_library = _OURS.split(path)
        if len(in_library) > 1:
            return f"{in_library[-1]}:{line}"
        innermost = innermost or f"{_PACKAGES.split(path)[-1]}:{line}"
    return innermost


def fused(program: Program, instruction: Instruction) -> Computation | None:
    """The computation that a fusion, or an asynchronous instruction, consists of."""
    called = _CALLS.search(instruction.attributes)
    return program.computations.get(called[1]) if called else None


def inner(program: Program, name: str) -> Iterator[Instruction]:
    """An instruction, and with a fusion all that it consists of."""
    instruction = program.instructions[name]
    yield instruction
    computation = fused(program, instruction)
    for each in computation.instructions if computation else ():
        yield from inner(program, each)


def group(instruction: Instruction, layer_types: Mapping[str, str]) -> str:
    """The part of a training step that an instruction belongs to.

    Args:
      instruction: An instruction of the compiled step.
      layer_types: Path of a module -> its layer type; see `models.summary.layer_types`.

    Returns:
      "<layer type>, forward" or "<layer type>, gradient" in the network; outside it the name of a
      part of the step, such as "optimiser".
    """
    scopes, backward = _scopes(instruction.op_name)
    if _NETWORK in scopes:
        # A scope with a dot is a method of a module, not another module.
        path = [scope for scope in scopes[scopes.index(_NETWORK) + 1 :] if "." not in scope]
        prefixes = ("/".join(path[:end]) for end in range(len(path), 0, -1))
        known = (layer_types[prefix] for prefix in prefixes if prefix in layer_types)
        layer_type = next(known, "activations, residuals, pooling")
        return f"{layer_type}, {'gradient' if backward else 'forward'}"
    return _PARTS.get(_part(scopes)) or _outside(instruction, scopes)


def stage(instruction: Instruction) -> str:
    """The stage of a training step that an instruction belongs to.

    Returns:
      "forward" or "backward" in the network; outside it "input", "augment", "normalise", "loss",
      "metrics" or "optimizer"; or what `group` returns for the rest.
    """
    scopes, backward = _scopes(instruction.op_name)
    if _NETWORK in scopes:
        return "backward" if backward else "forward"
    return _part(scopes) or _outside(instruction, scopes)


def _part(scopes: Sequence[str]) -> str:
    """The first scope in `_PARTS`; "" if there is none."""
    return next((scope for scope in scopes if scope in _PARTS), "")


def _outside(instruction: Instruction, scopes: Sequence[str]) -> str:
    """The group of an instruction that is in no known scope."""
    if not scopes or instruction.opcode.startswith("copy"):
        return "copies that the compiler adds"
    return "rest of the step"


def _scopes(op_name: str) -> tuple[list[str], bool]:
    """The scopes of an op_name without JAX's transformations, and whether it is a gradient."""
    scopes, backward = [], False
    for scope in filter(None, op_name.partition(";")[0].split("/")):
        while (wrapped := _WRAPPED.fullmatch(scope)) and wrapped[1] in _TRANSFORMS:
            backward |= wrapped[1] == "transpose"
            scope = wrapped[2]
        scopes.append(scope)
    return scopes, backward
