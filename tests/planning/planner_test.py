import dataclasses
import json

import jax
import pytest

from bloodjax.errors import UserError
from bloodjax.planning import (
    compilers,
    images,
    machines,
    planner,
    program,
    step_figures,
    steps,
    summary,
)

DEVICES = 2
_compiled = {}


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch):
    """Tests that plan the same step of the same config share its compilation."""
    compile_step = planner._compile

    def once(lower, what, machine, run):
        key = what, machine.chips, run.config.to_json()
        if key not in _compiled:
            _compiled[key] = compile_step(lower, what, machine, run)
        return _compiled[key]

    monkeypatch.setattr(planner, "_compile", once)


@pytest.fixture
def machine(monkeypatch):
    """A machine of two of this process's CPU devices, with the rates of a TPU v5e."""
    monkeypatch.setattr(compilers, "devices", lambda machine: jax.devices()[: machine.chips])
    monkeypatch.setattr(compilers, "version", lambda machine: "a compiler")
    return dataclasses.replace(machines.machine("v5e-4"), name="cpu-2", chips=DEVICES)


@pytest.fixture
def config(make_config):
    return make_config(**{"model.name": "simple_cnn_050", "dtype": "float32"})


def test_a_plan_of_a_run_in_two_phases(config, machine):
    plan = planner.plan(config, machine, search=False)
    assert set(plan["phases"]) == {"head", "finetune"}
    finetune = plan["phases"]["finetune"]
    for key in ("peak_bytes", "argument_bytes", "temp_bytes", "flops", "bytes_accessed", "by_kind"):
        assert plan[key] == finetune[key]
    assert plan["fits"] is True
    assert plan["estimated_cycles"] is None, "XLA's CPU compiler estimates none"
    assert plan["images_per_second"] is plan["run_seconds"] is None
    assert plan["images"]["train"] == 112
    assert plan["steps_per_epoch"] == 7
    assert finetune["argument_bytes"] >= finetune["resident_bytes"]
    # A network's own operations, without what the compiler adds; half of the batch a device.
    assert finetune["flops"] == pytest.approx(
        finetune["model_flops_per_image"] * 16 / DEVICES, rel=0.35
    )
    assert finetune["collectives"]["all-reduce"]["bytes"] >= finetune["needed_collective_bytes"]
    assert sum(finetune["by_kind"].values()) == pytest.approx(finetune["main_memory_bytes"], abs=50)
    assert sum(finetune["by_stage"].values()) == pytest.approx(
        finetune["main_memory_bytes"], abs=50
    )
    assert {"forward", "backward", "optimizer"} <= set(finetune["by_stage"])
    assert plan["evaluation"]["peak_bytes"] > plan["evaluation"]["argument_bytes"]
    assert json.loads(json.dumps(plan)) == plan


def test_the_words_of_a_plan_and_its_page(config, machine):
    plan = planner.plan(config, machine, search=False, only=("finetune",))
    text = summary.as_text(plan)
    assert "It fits: a chip has 15.75 GiB" in text
    assert "Step time: unknown; this compiler estimates none." in text
    assert "Nothing was run and nothing was measured" in text
    assert "convolution, forward" in text
    page = summary.page(plan)
    assert "Nothing was run and nothing was measured" in page
    assert "finetune: training step" in page


def _with_cycles(compile_step):
    """`compile_step`, with an estimate of 1,000 cycles for each operation."""

    def compiled(*arguments):
        found = compile_step(*arguments)
        operations = [dataclasses.replace(op, cycles=1000) for op in found.program.operations]
        changed = dataclasses.replace(found.program, operations=tuple(operations))
        return dataclasses.replace(found, program=changed)

    return compiled


def test_cycles_become_times_of_step_epoch_and_run(config, machine, monkeypatch):
    monkeypatch.setattr(planner, "_compile", _with_cycles(planner._compile))
    plan = planner.plan(config, machine, search=False)
    finetune, evaluation = plan["phases"]["finetune"], plan["evaluation"]
    seconds = finetune["estimated_cycles"] / machine.clock
    assert finetune["estimated_compute_seconds"] == pytest.approx(seconds)
    links = finetune["estimated_collective_seconds"]
    # A sum over two devices: each sends half of the array, twice.
    assert links == pytest.approx(finetune["collective_bytes"] / machine.link, rel=0.1)
    step = finetune["estimated_step_seconds"]
    assert step == pytest.approx(seconds + links)
    assert plan["images_per_second"] == pytest.approx(16 / step)
    epoch = 7 * step + 2 * evaluation["estimated_step_seconds"]
    assert plan["epoch_seconds"]["finetune"] == pytest.approx(epoch)
    assert plan["run_seconds"] == pytest.approx(2 * epoch + plan["epoch_seconds"]["head"])
    assert sum(finetune["by_kind"].values()) == pytest.approx(finetune["estimated_cycles"], abs=20)
    text = summary.as_text(plan)
    assert "Step time (estimate): " in text
    assert "M cycles" in text


def test_a_kernel_without_cycles_takes_at_least_the_time_of_its_operations():
    text = """HloModule m

ENTRY %main (x: bf16[1000,1000]) -> bf16[1000,1000] {
  %x = bf16[1000,1000]{1,0} parameter(0)
  %tanh = bf16[1000,1000]{1,0} tanh(%x), backend_config={"estimated_cycles":"1503"}
  ROOT %kernel = bf16[1000,1000]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"cost_estimate":{"flops":"61562880","bytes_accessed":"8"}}
}
"""  # noqa: E501
    found = dataclasses.replace(program.from_text(text), memory=program.Memory(1, 1, 1, 1, 4))
    compiled = step_figures.Compiled(found, None, None, None, 1.0)
    figures = step_figures.figures_of(compiled, machines.machine("v5e-1"), 8)
    assert figures["estimated_compute_seconds"] == pytest.approx(1e-6)
    # 10 microseconds at 4,096 operations per cycle and 1.503 GHz; its memory takes 4.9.
    assert figures["estimated_kernel_seconds"] == pytest.approx(1e-5)
    assert figures["estimated_step_seconds"] == pytest.approx(1.1e-5)
    assert figures["without_estimate"] == ["tpu_custom_call"]


def test_the_roofline_has_the_peak_of_the_dtype():
    text = (
        "HloModule m\n\nENTRY %main (x: f32[8]) -> f32[8] {\n  ROOT %x = f32[8] parameter(0)\n}\n"
    )
    found = dataclasses.replace(program.from_text(text), memory=program.Memory(1, 1, 1, 1, 4))
    compiled = step_figures.Compiled(found, 1e12, 1.0, None, 1.0)
    seconds = {
        dtype: step_figures.figures_of(compiled, machines.machine("h100"), 8, dtype=dtype)
        for dtype in ("bfloat16", "float32")
    }
    slow, fast = (
        seconds[dtype]["roofline"]["compute_seconds"] for dtype in ("float32", "bfloat16")
    )
    assert slow == pytest.approx(2 * fast, rel=0.01)


def test_several_steps_in_one_call_cost_as_many_times_one(config, machine):
    def flops(steps_per_call):
        changed = config.to_dict() | {"steps_per_call": steps_per_call}
        changed = planner.planned(type(config)(changed))
        return planner.plan(changed, machine, search=False, only=("finetune",))["flops"]

    assert flops(3) == pytest.approx(flops(1), rel=0.03)


@pytest.mark.slow
def test_the_largest_batch_is_one_that_was_compiled(config, machine):
    machine = dataclasses.replace(machine, memory=8 * 2**20)
    plan = planner.plan(config, machine, only=("finetune",))
    peaks = {int(batch): peak for batch, peak in plan["peak_bytes_by_batch_size"].items()}
    assert len(peaks) <= 4
    assert plan["largest_batch_size"] == max(b for b, peak in peaks.items() if peak <= 8 * 2**20)


def test_a_step_that_does_not_fit_is_a_plan_and_not_an_error(config, machine, monkeypatch):
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
                "space hbm. Used 20.00G of 15.75G hbm. Exceeded hbm capacity by 4.25G."
            )

    monkeypatch.setattr(steps.RunSteps, "lower_train", lambda self, name: Lowered())
    plan = planner.plan(config, machine, batch_size=20, search=False, only=("finetune",))
    assert plan["fits"] is False
    assert plan["peak_bytes"] == 20 * 2**30
    assert plan["estimated_step_seconds"] is None
    assert "does NOT fit" in summary.as_text(plan)
    assert "20.00 GiB" in summary.as_text(plan)
    assert "20.00" in summary.page(plan)


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("requires (512.00G) exceeds available HBM (15.75G).", 512 * 2**30),
        ("Used 16640.00M of 15.75G hbm", 16640 * 2**20),
        ("something new", int(15.75 * 2**30) + 1),
    ],
)
def test_what_a_program_needs_is_in_the_compilers_message(message, needed):
    assert planner._needed(message, machines.machine("v5e-1")) == needed


def test_another_name_of_a_step_is_an_error(config, machine):
    with pytest.raises(UserError, match="--steps=warmup: expected head or finetune or evaluation"):
        planner.plan(config, machine, only=("warmup",))


def test_a_batch_that_does_not_divide_is_an_error(config, machine):
    with pytest.raises(UserError, match="batch_size is 15, expected a multiple of 2, for 2 chips"):
        planner.plan(config, machine, batch_size=15, search=False)


def test_a_batch_is_a_multiple_of_chips_micro_batches_and_pairs(make_config):
    def multiple(**changes):
        return steps.batch_multiple(make_config(**changes), 4)

    assert multiple() == 4
    assert multiple(accumulate_steps=3, batch_size=12) == 12
    assert multiple(augment="mixup(0.2)") == 8


@pytest.mark.full
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"sharding": "fsdp"}, marks=pytest.mark.slow),
        {"accumulate_steps": 4},
        pytest.param(
            {"ema": 0.99, "augment": "d4|mixup(0.2)", "loss.label_smoothing": 0.1},
            marks=pytest.mark.slow,
        ),
        {"loss.logit_adjustment": 1.0, "loss.class_weights": "none"},
    ],
)
def test_other_settings_are_planned_and_cost_about_the_same(make_config, config, machine, changes):
    changed = make_config(**{"model.name": "simple_cnn_050", "dtype": "float32"} | changes)
    only = {"search": False, "only": ("finetune", "evaluation")}
    plan, plain = (planner.plan(each, machine, **only) for each in (changed, config))
    assert plan["flops"] == pytest.approx(plain["flops"], rel=0.25)
    # MixUp draws from a beta distribution, by rejection.
    unknown = plan["phases"]["finetune"]["loops_of_unknown_length"]
    assert (unknown > 0) == ("augment" in changes)
    if "sharding" in changes:
        assert (
            plan["phases"]["finetune"]["resident_bytes"]
            < plain["phases"]["finetune"]["resident_bytes"]
        )
        assert "all-gather" in plan["phases"]["finetune"]["collectives"]


def test_images_that_do_not_fit_are_planned_as_a_stream(make_config, machine):
    changes = {"data.on_device": "never", "phases.finetune.sizes": "16:0.5,32"}
    config = make_config(**{"model.name": "simple_cnn_050"} | changes)
    plan = planner.plan(config, machine, search=False, only=("finetune",))
    assert plan["images_on_device"] is False
    words = summary.as_text(plan)
    assert "stream from the host" in words
    # The step at the other size is not planned, which the plan says.
    assert "config.phases.finetune.sizes is 16:0.5,32: only the step at" in words


def test_a_head_on_cached_features_is_planned_with_them(make_config, machine):
    changes = {"phases.head.cache_features": "always", "augment": "none"}
    config = make_config(**{"model.name": "simple_cnn_050", **changes})
    plan = planner.plan(config, machine, search=False, only=("head",))
    assert plan["phases"]["head"]["cached_features"] is True
    assert plan["features"]["flops"] > plan["phases"]["head"]["flops"]


def test_a_config_is_planned_as_it_runs_on_an_accelerator(make_config):
    planned = steps.planned(make_config(parallel="pmap"), 32)
    assert (planned.dtype, planned.parallel, planned.batch_size) == ("bfloat16", "jit", 32)
    pretrained = make_config(**{"model.name": "efficientnet_b0", "model.weights": "imagenet"})
    source = steps.planned(pretrained).model.source
    assert source.location.startswith("hf:")
    assert len(source.mean) == 3


def test_what_parameters_need_under_fsdp_and_under_data(make_config, machine):
    def needed(layout):
        config = steps.planned(make_config(**{"model.name": "simple_cnn_050", "sharding": layout}))
        counts = images.count(config)
        run = steps.RunSteps(config, machine, jax.devices()[:DEVICES], counts)
        leaves = jax.tree.leaves(run._shapes["params"])
        return run.needed_collectives("finetune"), 2 * sum(leaf.size for leaf in leaves)

    replicated, parameters = needed("data")
    split, _ = needed("fsdp")
    assert 0.9 * parameters < replicated <= parameters  # all but BatchNorm's, which are frozen
    assert 1.5 * parameters < split <= 2 * parameters


def test_a_plan_is_held_against_a_device():
    plan = {
        "memory_bytes": 1000,
        "phases": {"head": {"peak_bytes": 300}, "finetune": {"peak_bytes": 600}},
        "evaluation": {"peak_bytes": 450},
    }
    stats = {"peak_bytes_in_use": 500, "bytes_limit": 2000}
    assert planner.compared_with_device(plan, stats) == {
        "planned_bytes": 600,
        "measured_bytes": 500,
        "ratio": 1.2,
        "limit_bytes": 2000,
    }


def test_a_program_is_for_one_device():
    """`planner` multiplies nothing by the number of chips: an SPMD program is one device's."""
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((64, 32), "float32", sharding=split)
    w = jax.ShapeDtypeStruct((32, 16), "float32")
    compiled = jax.jit(lambda x, w: x @ w).lower(x, w).compile()
    assert program.analyse(compiled).flops == 2 * 32 * 32 * 16
