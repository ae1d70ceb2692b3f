import csv
import dataclasses
import json

import numpy as np
import pytest

from bloodjax.errors import UserError
from bloodjax.training import lr_range_test


def losses(start=2.0, lowest=0.5, falls_at=40, rises_at=75, noise=0.0, seed=0):
    """Losses that are flat, fall from step `falls_at` on and rise from `rises_at` on."""
    steps = lr_range_test.STEPS
    step = np.arange(steps)
    fall = np.clip((step - falls_at) / max(1, rises_at - falls_at), 0, 1)
    curve = start + (lowest - start) * fall + start * np.clip(step - rises_at, 0, None) / 5
    return (curve + noise * np.random.default_rng(seed).standard_normal(steps)).tolist()


def test_the_rate_is_a_tenth_of_the_highest_one_at_which_the_loss_is_about_the_lowest():
    found = lr_range_test.find("head", "adamw", losses())
    schedule = [1e-6 * 1e6 ** (step / 99) for step in range(100)]
    np.testing.assert_allclose(found.rates, schedule, rtol=1e-5)
    assert schedule[70] < found.highest < schedule[77]
    assert found.learning_rate == float(f"{found.highest / 10:.2g}")
    assert found.rises
    assert "up to a learning rate of" in found.statement()


@pytest.mark.parametrize(("optimizer", "low", "high"), [("lion", 1e-7, 0.1), ("sgd", 1e-5, 10.0)])
def test_each_optimizer_has_its_range(optimizer, low, high):
    found = lr_range_test.find("head", optimizer, losses())
    np.testing.assert_allclose([found.rates[0], found.rates[-1]], [low, high], rtol=1e-5)


@pytest.mark.parametrize("rises_at", [50, 60, 70])
def test_weights_that_are_trained_already_hardly_fall_and_the_rise_still_counts(rises_at):
    edges = []
    for seed in range(20):
        curve = losses(start=0.3, lowest=0.29, rises_at=rises_at, noise=0.03, seed=seed)
        found = lr_range_test.find("finetune", "adamw", curve)
        assert found.rises
        edges.append(found.rates.index(found.highest) - rises_at)
    assert -5 <= np.median(edges) <= 0
    assert np.mean([-8 <= edge <= 1 for edge in edges]) >= 0.9


def test_a_test_that_ends_early_is_judged_by_what_it_has():
    found = lr_range_test.find("head", "adamw", losses()[:80])
    assert len(found.rates) == len(found.losses) == len(found.smoothed) == 80


def test_a_loss_that_does_not_rise_gives_the_end_of_the_range():
    found = lr_range_test.find("head", "adamw", losses(rises_at=99))
    assert found.highest == pytest.approx(1.0, rel=1e-5)
    assert not found.rises
    assert "has not risen" in found.statement()


@pytest.mark.parametrize(
    "curve",
    [
        [],
        [2.0] * 5,
        losses(falls_at=0, rises_at=2),
        *(losses(lowest=2.0, rises_at=1000, noise=0.1, seed=seed) for seed in range(5)),
    ],
)
def test_a_loss_that_does_not_fall_is_one_line(curve):
    with pytest.raises(UserError) as error:
        lr_range_test.find("head", "adamw", curve)
    assert str(error.value) == (
        "config.phases.head.learning_rate is auto, but in the range test the loss did not fall at "
        "any rate from 1e-06: expected a number, in a new --workdir"
    )


def test_smoothing_keeps_a_constant_and_lines_inside():
    np.testing.assert_allclose(lr_range_test.smooth(np.full(40, 3.0)), 3.0)
    line = np.arange(40.0)
    np.testing.assert_allclose(lr_range_test.smooth(line)[12:-12], line[12:-12], atol=1e-3)


def test_what_was_found_is_kept(tmp_path):
    assert lr_range_test.read(tmp_path, "head") is None
    assert lr_range_test.rate(tmp_path, "head") is None
    found = lr_range_test.find("head", "adamw", losses())
    lr_range_test.write(tmp_path, found)
    assert lr_range_test.read(tmp_path, "head") == found
    assert lr_range_test.rate(tmp_path, "head") == found.learning_rate
    assert lr_range_test.rate(tmp_path, "finetune") is None
    folder = tmp_path / "lr_range_test"
    assert (folder / "head.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.reader((folder / "head.csv").open()))
    assert rows[0] == ["learning_rate", "loss", "smoothed_loss"]
    assert [float(row[1]) for row in rows[1:]] == list(found.losses)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), None, "fast"])
def test_a_damaged_file_is_one_line(tmp_path, value):
    content = dataclasses.asdict(lr_range_test.find("head", "adamw", losses()))
    path = lr_range_test.file(tmp_path, "head")
    path.parent.mkdir()
    path.write_text(json.dumps(content | {"learning_rate": value}))
    with pytest.raises(UserError, match=r"head\.json: is damaged .*expected a range test"):
        lr_range_test.read(tmp_path, "head")


@pytest.mark.parametrize(
    ("losses", "length"),
    [
        ([0.1] * 100, 100),
        # One batch of a trained network may be far above the lowest by chance.
        ([0.1] * 20 + [1.5] + [0.1] * 79, 100),
        ([0.1] * 20 + [0.5] * 80, 24),
        ([0.1] * 20 + [50.0] * 80, 21),
        ([5.0, 0.1] * 50, 100),
        ([0.1, 50.0], 2),
    ],
)
def test_it_ends_where_several_batches_diverge(losses, length):
    assert list(lr_range_test.until_diverged(losses)) == losses[:length]
