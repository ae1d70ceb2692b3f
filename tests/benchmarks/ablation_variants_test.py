"""Tests of benchmarks/ablation_variants.py."""

import pytest

from benchmarks import ablation_variants
from benchmarks.ablation_variants import CUMULATIVE
from bloodjax import config as config_lib
from bloodjax.errors import UserError


def test_each_row_is_of_a_variant_and_ema_rows_are_of_one_with_an_average():
    for row in CUMULATIVE.rows.values():
        assert row.variant in CUMULATIVE.variants
        if row.weights == "raw":
            assert CUMULATIVE.variants[row.variant]["ema"] > 0


def test_a_row_is_compared_with_the_one_above_or_with_the_first():
    names = list(CUMULATIVE.rows)
    assert [CUMULATIVE.reference(name) for name in names] == [None, *names[:-1]]
    recipe = config_lib.load("recipes/robust", ["augment=d4|blur|erase"])
    one_change = ablation_variants.one_change(recipe, True, {}, {})
    first, *others = one_change.rows
    assert one_change.reference(first) is None
    assert {one_change.reference(name) for name in others} == {first}


def test_each_stage_is_left_out_once_and_changes_are_made_one_at_a_time():
    recipe = config_lib.load("recipes/robust", ["augment=d4 | choice('microscope', 0.8, 2)|erase"])
    found = ablation_variants.one_change(
        recipe,
        True,
        {"filters": "random_conv(0.7, p=0.2)|hue"},
        {"consistent": ("loss.consistency", "12")},
    )
    changes = {name: found.variants[row.variant] for name, row in found.rows.items()}
    assert changes == {
        "the whole recipe": {},
        "without d4": {"augment": "choice('microscope', 0.8, 2)|erase"},
        "without choice('microscope', 0.8, 2)": {"augment": "d4|erase"},
        "without erase": {"augment": "d4|choice('microscope', 0.8, 2)"},
        "with filters": {
            "augment": "random_conv(0.7, p=0.2)|hue|d4|choice('microscope', 0.8, 2)|erase"
        },
        "changed: consistent": {"loss.consistency": "12"},
    }
    assert found.rows["without choice('microscope', 0.8, 2)"] == ablation_variants.Row(
        "without-choice-microscope-0.8-2", "epoch", recipe.evaluation.tta
    )
    assert not found.is_cumulative


def test_a_recipe_of_one_stage_or_none():
    one, none = (config_lib.load("recipes/robust", [f"augment={a}"]) for a in ("d4", "none"))
    left_out = ablation_variants.one_change(one, True, {}, {}).variants
    assert left_out == {"the-whole-recipe": {}, "without-d4": {"augment": "none"}}
    added = ablation_variants.one_change(none, True, {"blur": "blur"}, {}).variants
    assert added == {"the-whole-recipe": {}, "with-blur": {"augment": "blur"}}


def test_two_names_of_one_folder_are_refused():
    recipe = config_lib.load("recipes/robust")
    with pytest.raises(UserError, match="another variant has the folder with-a-b"):
        ablation_variants.one_change(recipe, False, {"a b": "blur", "a-b": "hue"}, {})
