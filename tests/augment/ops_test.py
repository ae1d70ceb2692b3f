import pathlib

import pytest

from bloodjax.augment.ops import EFFECTS, OPS, POOLS

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "augmentation.md"


def test_every_effect_can_be_applied_and_nothing_else():
    assert set(EFFECTS) == {name for name, op in OPS.items() if op.kind == "effect"}
    assert {op.kind for op in OPS.values()} == {"table", "affine", "matrix", "effect"}


def test_pools_hold_operations_once():
    for pool in POOLS.values():
        assert set(pool) <= set(OPS)
        assert len(set(pool)) == len(pool)
    assert len(POOLS["standard"]) == 14


@pytest.mark.parametrize("name", OPS)
def test_the_page_says_what_magnitude_1_is(name):
    either_way = ", either way" if OPS[name].signed else ""
    assert f"| `{name}` | {OPS[name].full}{either_way} |" in DOCS.read_text("utf-8")
