"""Small training steps, compiled by the compilers for a TPU and a GPU, have no known slow parts.

The tier `compiled` (pytest -m compiled -n 0) needs the compilers' wheels: the extras [plan-tpu] and
[plan-gpu]. Each rule is also checked to fail on a program that breaks it.
"""

import collections
import os
import pathlib
import re
import subprocess
import sys

import pytest

from bloodjax.planning import compilers, machines, program
from bloodjax.planning.costs import Costs, arrays

PROGRAMS = pathlib.Path(__file__).with_name("compiled_programs.py")
IMAGES, BATCH, SIZE = 100_003, 32, 32  # as in compiled_programs.py
STEPS = ("convnext", "efficientnet", "augmented")

pytestmark = pytest.mark.compiled


@pytest.fixture(scope="session")
def compile_for(tmp_path_factory):
    """Compiles programs of compiled_programs.py for a machine, once; skips without its compiler."""
    found = {}

    def compile_for(machine, name):
        if "PYTEST_XDIST_WORKER" in os.environ:
            pytest.skip("compilers for accelerators do not run in several processes: use -n 0")
        if not compilers.is_available(machines.machine(machine).platform):
            pytest.skip(f"no compiler for {machine} here: needs the extra [plan-tpu] or [plan-gpu]")
        if (machine, name) not in found:
            folder = tmp_path_factory.mktemp(machine)
            # Without the flags of the tests' own CPU devices.
            environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
            command = [sys.executable, str(PROGRAMS), machine, str(folder), name]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            text = (folder / f"{name}.txt").read_text("utf-8")
            found[machine, name] = program.from_text(text)
        return found[machine, name]

    return compile_for


def elements(array):
    total = 1
    for n in array.shape:
        total *= n
    return total


def grows_with_the_dataset(found):
    """Operations that write, or read, as many bytes as all images of the dataset have."""
    least = IMAGES * SIZE * SIZE * 3
    return [op.name for op in found.operations if op.traffic.total >= least]


def float32_maps(found):
    """Operations of the network that write a map in float32 to memory."""
    least = BATCH * 8 * 8 * 16  # the smallest map
    return [
        f"{op.name} {op.shape} {op.op_name}"
        for op in found.operations
        if re.search(r"Network|_Wide", op.op_name)
        for array in arrays(op.shape)
        if array.dtype == "f32" and len(array.shape) >= 3 and elements(array) >= least
    ]


def float32_convolutions(found):
    """Convolutions with a float32 operand that is a map or a kernel of four dimensions."""
    names = []
    for op in found.operations:
        for each in found.instructions(op):
            if each.opcode != "convolution" and "__cudnn$conv" not in op.target:
                continue
            inputs = [found.text.instructions.get(name) for name in each.operands]
            shapes = [array for i in inputs if i for array in arrays(i.shape)]
            if any(a.dtype == "f32" and len(a.shape) >= 4 for a in shapes):
                names.append(f"{op.name} {each.op_name}")
    return names


def gathers_of_pixels(found):
    """Gathers of many slices of a pixel or less."""
    names = []
    for op in found.operations:
        for each in found.instructions(op):
            sizes = re.search(r"slice_sizes=\{([\d,]*)\}", each.attributes)
            if each.opcode != "gather" or not sizes:
                continue
            slice_size = 1
            for n in filter(None, sizes[1].split(",")):
                slice_size *= int(n)
            count = elements(arrays(each.shape)[0]) / slice_size
            if slice_size <= 4 and count >= BATCH * SIZE:
                names.append(f"{op.name} {each.op_name}")
    return names


def gathers_of_one_parameter(found):
    """Parameters of the program that more than one all-gather takes."""
    gathered = collections.Counter()
    for op in found.operations:
        if op.collective == "all-gather":
            gathered.update(set(_parameters(found, op.name)))
    return [name for name, times in gathered.items() if times > 1]


def _parameters(found, name):
    """The program's parameters that a value is a copy of, in another dtype or layout."""
    instruction = found.text.instructions[name]
    if instruction.opcode == "parameter":
        yield name
    elif not name.startswith("while"):
        for operand in instruction.operands:
            if operand in found.text.computations[found.text.entry].instructions:
                yield from _parameters(found, operand)
