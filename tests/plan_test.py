import json
import os
import subprocess

import pytest

from bloodjax.planning import compilers, machines

KEYS = {
    *("device", "chips", "fits", "peak_bytes", "argument_bytes", "temp_bytes", "flops"),
    *("bytes_accessed", "estimated_cycles", "estimated_step_seconds", "images_per_second"),
    *("collective_bytes", "largest_batch_size", "by_kind"),
}
TINY = (
    *("--config=quickstart", "--config.data.image_size=32", "--config.data.train=synthetic:200"),
    *("--batch_size=8", "--config.profile=false"),
)


@pytest.fixture
def plan(command, tmp_path):
    """Runs `bloodjax plan` as a process of its own, without the tests' flags of CPU devices."""

    def run(*flags, out=None):
        out = tmp_path / "plans" / "plan.json" if out is None else out
        environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        arguments = command("plan", *TINY, *flags, f"--out={out}")
        return subprocess.run(**arguments, env=environment, capture_output=True), out

    return run


def _needs(platform):
    if not compilers.is_available(platform):
        extra = {"tpu": "plan-tpu", "cuda": "plan-gpu"}[platform]
        pytest.skip(f"the compiler for {platform} is not here: needs the extra [{extra}]")


def test_a_folder_in_the_place_of_the_output_ends_it_before_compiling(plan, tmp_path):
    (tmp_path / "plan.json").mkdir()
    done, out = plan("--device=v5e-1", out=tmp_path / "plan.json")
    assert done.returncode == 2
    assert done.stderr == f"error: {out}: is a folder, expected a file to write\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device=v5e8"], "--device=v5e8: no such machine; did you mean --device=v5e-8?"),
        (["--device=h200x99"], "--device=h200x99: expected 1 to 8 GPUs"),
        ([], "--device is missing"),
    ],
)
def test_a_machine_that_does_not_exist_is_an_error_in_one_line(plan, flags, message):
    done, out = plan(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(("device", "platform"), [("v5e-8", "tpu"), ("h200", "cuda")])
def test_without_the_compiler_one_line_says_how_to_get_it(plan, device, platform):
    if compilers.is_available(platform):
        pytest.skip(f"the compiler for {platform} is here")
    done, out = plan(f"--device={device}")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --device={device} needs the ")
    assert "pip install '" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()


def test_the_name_of_the_file_says_that_it_is_json(plan, tmp_path):
    done, _ = plan("--device=v5e-1", out=tmp_path / "plan.txt")
    assert done.returncode == 2
    assert "expected a file name that ends in .json" in done.stderr


@pytest.mark.compiled
@pytest.mark.parametrize("device", ["v5e-1", "v5e-8", "h200"])
def test_a_small_run_is_planned(plan, device):
    machine = machines.machine(device)
    _needs(machine.platform)
    done, out = plan(f"--device={device}", "--search=false")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text("utf-8"))
    assert set(found) >= KEYS
    assert (found["device"], found["chips"], found["fits"]) == (device, machine.chips, True)
    assert found["dtype"] == "bfloat16"
    assert found["flops"] > 0
    assert "convolution, gradient" in found["by_kind"]
    estimated = (found["estimated_cycles"], found["estimated_step_seconds"], found["run_seconds"])
    if machine.platform == "tpu":
        assert all(estimated)
        assert found["images_per_second"] == pytest.approx(8 / found["estimated_step_seconds"])
    else:
        assert not any(estimated)
    assert (found["collective_bytes"] > 0) == (machine.chips > 1)
    assert "Nothing was run and nothing was measured" in done.stdout
    assert "finetune: training step" in out.with_suffix(".html").read_text("utf-8")


@pytest.mark.compiled
def test_two_plans_at_once_do_not_wait_for_each_other(command, tmp_path):
    """libtpu alone lets one process of a host have it."""
    _needs("tpu")
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    flags = (*TINY, "--device=v5e-1", "--steps=evaluation", "--search=false")
    outs = [tmp_path / f"{i}.json" for i in range(2)]
    started = [
        subprocess.Popen(
            **command("plan", *flags, f"--out={out}"), env=environment, stderr=subprocess.PIPE
        )
        for out in outs
    ]
    for process, out in zip(started, outs, strict=True):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        assert json.loads(out.read_text("utf-8"))["evaluation"]["fits"]
