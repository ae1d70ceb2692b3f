"""Tests of benchmarks/compiled.py, of its table, and of what its contenders compile."""

import dataclasses
import json
import math
import types

import jax
import jax.numpy as jnp
import pytest

from benchmarks import compiled, compiled_worker, tables
from benchmarks.contenders import flax_linen
from benchmarks.tasks import Task
from bloodjax.models import registry, summary
from bloodjax.planning import program

QUICK = "mobilenetv1_100"
EACH = [
    pytest.param(name, marks=[] if name == QUICK else [pytest.mark.full])
    for name in compiled.NETWORKS
]


def work(module, size=224):
    """A network's number of parameters, and of operations in a forward pass."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    return parameters, summary._forward(module, shapes, size)


@pytest.mark.parametrize("name", EACH)
def test_flax_has_the_same_network(name):
    # At 96 px ours leaves out the border of a depthwise kernel that is larger than its map.
    ours = work(registry.linear(name, 8))
    # Flax's own layers need JAX's default promotion.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        assert work(flax_linen.Network(name)) == ours


# Keras builds and traces these for up to half a minute each.
LONG = ("convnext_base", "convnext_tiny", "efficientnet_b0", "inception_v3", "mobilenetv1_100")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in LONG else pytest.mark.full)
        for name in compiled.NETWORKS
    ],
)
def test_keras_has_the_same_network(name, keras):
    from benchmarks.contenders import keras_applications

    # Keras multiplies maps by vectors.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model = keras_applications.model(Task("train", name, 8))
    variant = "keras" if "keras" in registry.architecture(name).variants else ""
    ours, _ = work(registry.linear(name, 8, variant=variant))
    assert sum(math.prod(v.shape) for v in model.trainable_variables) == ours


def row(contender, cycles=None, network="resnet50", **changes):
    task = dataclasses.asdict(Task("train", network, 64, 96, "bfloat16"))
    figures = {"cycles": cycles, "bytes": 2e9, "peak_bytes": 1e9, "jax": "1.2", "content": "a"}
    return {"contender": contender, "task": task, **figures, **changes}


def test_a_result_takes_the_place_of_the_earlier_one(tmp_path):
    path = tmp_path / "a" / "v5e-1.json"
    for new in (row("flax", 1e6), row("bloodjax", 2e6), row("flax", 3e6)):
        compiled.update(path, new)
    found = {r["contender"]: r["cycles"] for r in compiled.read(path)}
    assert found == {"bloodjax": 2e6, "flax": 3e6}
    assert json.loads(path.read_text())["device"] == "v5e-1"


def test_the_table_has_ours_and_the_ratios():
    rows = [row("bloodjax", 6e6), row("keras", 12e6, bytes=8e9), row("bloodjax_before", 9e6)]
    header, _, line = tables.compiled_table(rows).splitlines()
    cells = dict(zip(_cells(header), _cells(line), strict=True))
    assert header.startswith("| network | batch | px | M cycles | before | / Keras |")
    assert line.startswith("| resnet50 | 64 | 96 | 6.00 | 9.00 | 0.50 | 2.00 | 2.00 | 0.25 |")
    assert cells["GB at the peak"] == "1.00"


def _cells(line):
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_cycles_without_an_estimate_of_a_kernel_are_a_lower_bound():
    line = tables.compiled_table([row("bloodjax", 6e6, calls_without_cycles=2)]).splitlines()[-1]
    assert "| > 6.00 |" in line


def test_without_cycles_the_kernels_are_shown():
    kernels = {"kernels": {"fusion": 3, "cudnn": 2}, "float32_convolutions": 1}
    rows = [row("bloodjax", **kernels, copies=4, copied_bytes=5e8)]
    assert "cycles" not in tables.compiled_table(rows)
    line = tables.kernel_table(rows).splitlines()[-1]
    assert line == "| resnet50 | 64 | 96 | bloodjax | 5 | 3 | 0 | 2 | 0 | 0 | 1 | 4 | 0.50 |"


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--networks=alexnet", "'alexnet', expected some of"), ("--batches=x", "expected numbers")],
)
def test_a_wrong_flag_is_named(flag, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compiled", flag])
    with pytest.raises(SystemExit):
        compiled.main()
    assert message in capsys.readouterr().err


GPU = """\
HloModule jit_step, is_scheduled=true

%inside (p: f32[8,8,8,4]) -> f32[8,8,8,4] {
  %p = f32[8,8,8,4]{3,2,1,0} parameter(0)
  ROOT %n = f32[8,8,8,4]{3,2,1,0} negate(%p)
}

ENTRY %main (x: f32[8,8,8,4], k: f32[3,3,4,4]) -> f32[8,8,8,4] {
  %x = f32[8,8,8,4]{3,2,1,0} parameter(0)
  %k = f32[3,3,4,4]{3,2,1,0} parameter(1)
  %a = f32[8,8,8,4]{3,2,1,0} fusion(%x), kind=kLoop, calls=%inside
  %b = f32[8,8,8,4]{3,2,1,0} fusion(%a), kind=kCustom, calls=%inside, backend_config={"fusion_backend_config":{"kind":"__triton"}}
  %c = f32[8,8,8,4]{3,2,1,0} transpose(%b), dimensions={0,2,1,3}
  ROOT %d = f32[8,8,8,4]{3,2,1,0} custom-call(%c, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$convForward"
}
"""  # noqa: E501


class Compiled:
    """A compiled program for a GPU, of which the compiler counts nothing."""

    def as_text(self):
        return GPU

    def cost_analysis(self):
        return None

    def memory_analysis(self):
        sizes = ("argument", "output", "alias", "temp", "generated_code")
        return types.SimpleNamespace(
            **{f"{name}_size_in_bytes": 100 for name in sizes}, peak_memory_in_bytes=0
        )


def test_the_kernels_of_a_gpu_are_counted():
    found = compiled_worker.figures(Compiled())
    assert found["cycles"] is None
    assert found["kernels"] == {"fusion": 1, "triton": 1, "copy": 1, "cudnn": 1}
    assert (found["float32_convolutions"], found["copies"]) == (1, 1)
    one = 4 * 8 * 8 * 8 * 4
    assert found["copied_bytes"] == 2 * one
    assert found["bytes"] == 4 * 2 * one + 4 * 3 * 3 * 4 * 4
    assert found["peak_bytes"] == 200


KERNEL = """\
HloModule jit_step, is_scheduled=true

ENTRY %main (x: bf16[24,24,64,96], k: f32[49,8,96]) -> bf16[12,12,64,96] {
  %x = bf16[24,24,64,96]{3,2,1,0} parameter(0)
  %k = f32[49,8,96]{2,1,0} parameter(1)
  %a = bf16[24,24,64,96]{3,2,1,0} negate(%x), backend_config={"estimated_cycles":"100"}
  ROOT %d = bf16[12,12,64,96]{3,2,1,0} custom-call(%a, %k), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/depthwise/cond/branch_0_fun/depthwise/pallas_call"}
}
"""  # noqa: E501
CASE = ("forward", 7, 2, 24, 96, 64, "bfloat16")


def test_the_kernels_of_a_step_are_found():
    assert compiled_worker.kernel_cases(program.from_text(KERNEL)) == [list(CASE)]


MLP = """\
HloModule jit_step, is_scheduled=true

ENTRY %main (x: bf16[36864,96], k: f32[1152,128], o: f32[1,128], w: bf16[128,384]) -> bf16[36864,96] {
  %x = bf16[36864,96]{1,0} parameter(0)
  %k = f32[1152,128]{1,0} parameter(1)
  %o = f32[1,128]{1,0} parameter(2)
  %w = bf16[128,384]{1,0} parameter(3)
  ROOT %d = bf16[36864,96]{1,0} custom-call(%x, %x, %k, %o, %w), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/branch_0_fun/residual_mlp/pallas_call"}
}
"""  # noqa: E501


def test_a_kernel_of_a_residual_mlp_is_found():
    expected = ["residual_mlp", 36864, 1152, 96, 384]
    assert compiled_worker.kernel_cases(program.from_text(MLP)) == [expected]


def test_a_kernel_that_adds_a_gradient_is_found():
    text = KERNEL.replace("depthwise/pallas", "depthwise_input_grad_added/pallas")
    [found] = compiled_worker.kernel_cases(program.from_text(text))
    assert found[0] == "input_grad_added"


SILU = """\
HloModule jit_step, is_scheduled=true

ENTRY %main (y: bf16[12,12,64,96], m: f32[64,96], x: bf16[24,24,64,96]) -> (f32[25,8,96], f32[8,96]) {
  %y = bf16[12,12,64,96]{3,2,1,0} parameter(0)
  %m = f32[64,96]{1,0} parameter(1)
  %x = bf16[24,24,64,96]{3,2,1,0} parameter(2)
  ROOT %d = (f32[25,8,96]{2,1,0}, f32[8,96]{1,0}) custom-call(%y, %y, %m, %x), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/depthwise_silu_kernel_grad/pallas_call"}
}
"""  # noqa: E501


def test_a_kernel_between_silus_is_found():
    expected = ["silu_kernel_grad", 5, 2, 24, 96, 64]
    assert compiled_worker.kernel_cases(program.from_text(SILU)) == [expected]


def test_cycles_of_kernels_are_added():
    other = (*CASE[:3], 12, *CASE[4:])
    found = {"cycles": 100, "calls_without_cycles": 3}
    compiled.add_kernels(found, [CASE, CASE, other], {CASE: 7, other: None})
    assert found == {"cycles": 114, "calls_without_cycles": 1, "kernel_cycles": 14}


def test_measured_kernels_are_not_compiled_again(tmp_path):
    assert compiled.depthwise_cycles(tmp_path / "none") == {}
    fields = ("kernel", "stride", "side", "channels", "batch", "dtype")
    case = dict(zip(fields, CASE[1:], strict=True))
    results = [{"case": case, "direction": "forward", "forms": {"native": 9, "mosaic": 7}}]
    results.append({"case": case, "direction": "input_grad", "forms": {"mosaic": None}})
    (tmp_path / "depthwise_1.json").write_text(json.dumps({"results": results}))
    assert compiled.depthwise_cycles(tmp_path) == {CASE: 7}
