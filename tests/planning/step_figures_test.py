import pytest

from bloodjax.planning import machines, program, step_figures

BYTES = 128
SUM = """HloModule jit_step, is_scheduled=true

ENTRY %main (w: f32[4,8]) -> f32[4,8] {{
  %w = f32[4,8]{{1,0}} parameter(0)
  ROOT %sum = f32[4,8]{{1,0}} all-reduce(%w), channel_id=1, replica_groups={groups}
}}
"""


@pytest.mark.parametrize(
    ("groups", "others"), [("{}", 7 / 8), ("{{0,1},{2,3},{4,5},{6,7}}", 1 / 2)]
)
def test_a_sum_sends_twice_the_shares_of_the_others_of_its_group(groups, others):
    machine = machines.machine("v5e-8")
    found = program.from_text(SUM.format(groups=groups))
    (operation,) = found.collectives
    seconds = step_figures._link_seconds(operation, machine)
    assert seconds == pytest.approx(2 * others * BYTES / machine.link)
