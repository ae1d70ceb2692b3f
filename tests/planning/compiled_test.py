"""Small training steps, compiled for a TPU and a GPU, do nothing that is known to be slow there.

The tier `compiled` (`pytest -m compiled -n 0`) needs the compilers' wheels: the extras [plan-tpu]
and [plan-gpu]. Each rule is also checked to find fault with a program that breaks it.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from bloodjax.planning import compilers, findings, machines, program

PROGRAMS = pathlib.Path(__file__).with_name("compiled_programs.py")
IMAGES, BATCH, SIZE = 100_003, 32, 32  # as in compiled_programs.py
MACHINES = ("v5e-1", "h200")

pytestmark = pytest.mark.compiled


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Compiles a program of compiled_programs.py for a machine, once.

    Skips where the compiler is missing, and under xdist, whose processes would load it together.
    """
    found = {}

    def compiled(machine, name):
        if "PYTEST_XDIST_WORKER" in os.environ:
            pytest.skip("the compilers need much memory and all cores: run with -n 0")
        platform = machines.machine(machine).platform
        if not compilers.is_available(platform):
            extra = {"tpu": "plan-tpu", "cuda": "plan-gpu"}[platform]
            pytest.skip(f"no compiler for {machine} is installed: needs the extra [{extra}]")
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

    return compiled


def reads_the_dataset(step):
    """Operations that read or write as many bytes as all images have."""
    return [op for op in step.operations if op.traffic.total >= IMAGES * SIZE * SIZE * 3]


def of_network(op_name):
    """Whether an operation is the network's own. The logits are in float32 on purpose."""
    return re.search(r"Network|Convolution", op_name) and "head/logits" not in op_name


def float32_maps(step):
    smallest = BATCH * 4 * 4 * 64
    found = findings.float32_maps(step, BATCH, elements=smallest)
    return [op for op in found if of_network(op.op_name)]


def float32_convolutions(step):
    found = findings.float32_products(step)
    return [instruction for _, instruction in found if of_network(instruction.op_name)]


def pixel_gathers(step):
    return findings.small_gathers(step, elements=3)


RULES = {
    "images_as_they_are": reads_the_dataset,
    "float32_maps": float32_maps,
    "float32_convolution": float32_convolutions,
    "single_pixels": pixel_gathers,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["convnext", "efficientnet", "augmented"])
@pytest.mark.parametrize("machine", MACHINES)
def test_a_step_has_no_known_fault(machine, name, rule, compiled):
    if (machine, rule) == ("h200", "single_pixels"):
        pytest.skip("a GPU gathers all pixels at once: see the test of its augmentation")
    step = compiled(machine, name)
    assert len(step.operations) > 50
    assert [str(fault) for fault in RULES[rule](step)] == []


@pytest.mark.parametrize("name", RULES)
def test_a_faulty_program_is_found_on_a_tpu(name, compiled):
    assert RULES[name](compiled("v5e-1", name))


@pytest.mark.parametrize("name", ["float32_maps", "float32_convolution", "single_pixels"])
def test_a_faulty_program_is_found_on_a_gpu(name, compiled):
    assert RULES[name](compiled("h200", name))


def augmentation_on_a_gpu(step):
    """Loops that a GPU's host waits for, and float32 copies of the images read and written."""
    inside = [op for op in step.operations if "augment" in op.op_name]
    return step.loops, sum(op.traffic.total for op in inside) / (BATCH * SIZE * SIZE * 3 * 4)


def test_augmentation_on_a_gpu_has_no_loops_and_few_passes(compiled):
    loops, passes = augmentation_on_a_gpu(compiled("h200", "augmented"))
    assert loops == ()
    assert 10 < passes < 65


def test_the_form_for_a_tpu_has_loops_and_more_passes_on_a_gpu(compiled):
    loops, passes = augmentation_on_a_gpu(compiled("h200", "by_choice"))
    assert loops  # Their passes count once.
    assert passes > 65


def test_depthwise_kernels_are_compiled_for_a_gpu(compiled):
    targets = [op.target for op in compiled("h200", "depthwise_kernels").operations]
    assert sum("triton" in target for target in targets) == 3
    assert not any("cudnn" in target for target in targets)


def test_fsdp_gathers_each_parameter_once(compiled):
    step = compiled("v5e-4", "fsdp")
    assert sum(op.collective == "all-gather" for op in step.collectives) > 4
    assert findings.repeated_gathers(step) == []


def test_a_parameter_that_is_gathered_twice_is_found(compiled):
    assert len(findings.repeated_gathers(compiled("v5e-4", "gathered_twice"))) == 1
