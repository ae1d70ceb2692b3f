import pytest

from bloodjax.errors import UserError
from bloodjax.planning import machines


@pytest.mark.parametrize("name", machines.NAMES)
def test_every_machine_has_its_figures(name):
    machine = machines.machine(name)
    assert machine.peak_flops("bfloat16") > 1e14
    assert 0 < machine.memory <= machine.total_memory
    assert machine.bandwidth > 5e11
    assert (machine.clock is None) == (machine.platform == "cuda")


@pytest.mark.parametrize(
    ("name", "chips"),
    [("v5e-1", 1), ("v5e-16", 16), ("v5e-64", 64), ("v4-8", 4), ("v5p-8", 4), ("h200x8", 8)],
)
def test_chips_are_what_jax_sees(name, chips):
    assert machines.machine(name).chips == chips


def test_the_clock_gives_the_published_peak():
    """4 matrix units of 128 x 128, two operations per cycle each; 2 cores on v5p."""
    units = 4 * 128 * 128 * 2
    for name, per_cycle in (("v5e-1", units), ("v5p-8", 2 * units), ("v6e-1", 4 * units)):
        machine = machines.machine(name)
        assert machine.clock * per_cycle == pytest.approx(machine.peak_flops("bfloat16"), rel=1e-3)


def test_a_gpus_description_follows_its_number():
    assert machines.machine("a100x4").topology["topology"] == "1x1x4"
    text = machines.machine("a100").topology["target_config"]
    assert "major: 8 minor: 0" in text
    assert "core_count: 108" in text


@pytest.mark.parametrize("name", ["v5e8", "h300", "h200x9", "h200x0", "", "v5e-8x2"])
def test_another_machine_is_an_error_in_one_line(name):
    with pytest.raises(UserError, match=f"--device={name}: "):
        machines.machine(name)
