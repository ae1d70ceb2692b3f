import dataclasses

import numpy as np
import pytest

from bloodjax.adaptation import cell_finder, remedies
from bloodjax.adaptation.cell_finder import FoundCells
from bloodjax.adaptation.remedies import Sizes
from bloodjax.evaluation.appearance import UNCHANGED, Appearance
from bloodjax.metrics.label_shift import LabelShift

N = 60
LABELS = np.arange(N) % 3
# Diameters of three classes in pixels, and how much cells of one class differ.
SIZES = Sizes(np.log(np.array([30.0, 45.0, 60.0])), 0.1)


def cells(diameters, whole=None):
    """Found cells of these diameters; the other fields are not read."""
    n = len(diameters)
    wide = {"background": 3, "nucleus_density": 3, "cell_density": 3, "cell_box": 4}
    wide |= {"nucleus_centre": 2, "cell_centre": 2}
    fields = {field.name: np.full(n, np.nan) for field in dataclasses.fields(FoundCells)}
    fields |= {name: np.full((n, columns), np.nan) for name, columns in wide.items()}
    whole = np.ones(n, bool) if whole is None else whole
    fields |= {"cell_diameter": np.float64(diameters), "is_whole": whole, "has_nucleus": whole}
    return FoundCells(**fields)


def drawn(seed=0, within=0.1):
    """Diameters of cells of the three classes as in training."""
    noise = np.random.default_rng(seed).normal(size=N) * within
    return np.exp(SIZES.logarithm[LABELS] + noise)


def certain(labels=LABELS):
    return np.eye(3, dtype=np.float32)[labels] * 0.94 + 0.02


def test_training_sizes_are_medians_of_whole_cells():
    diameters = drawn()
    whole = np.arange(N) != 0
    diameters[0] = 900
    found = remedies.training_sizes(cells(diameters, whole), LABELS, 4)
    expected = np.median(np.log(diameters[1:])[LABELS[1:] == 1])
    assert found.logarithm[1] == pytest.approx(expected)
    assert np.isnan(found.logarithm[3])
    assert found.within == pytest.approx(0.1, rel=0.4)


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_cells_of_another_size_are_brought_to_that_of_training(factor):
    found, remedy = remedies.zoom_cells(cells(drawn() / factor), SIZES, certain())
    assert remedy.applied
    assert found == pytest.approx(factor, rel=0.05)
    assert remedy.check["misfit_after"] < remedy.check["misfit_before"]


def test_the_size_is_found_although_some_classes_are_wrong():
    wrong = np.where(np.arange(N) % 5 == 0, (LABELS + 1) % 3, LABELS)
    found, remedy = remedies.zoom_cells(cells(drawn() / 1.4), SIZES, certain(wrong))
    assert remedy.applied
    assert found == pytest.approx(1.4, rel=0.1)


def test_cells_of_the_size_of_training_are_left_alone():
    found, remedy = remedies.zoom_cells(cells(drawn()), SIZES, certain())
    assert (found, remedy.applied) == (1.0, False)
    few = cells(drawn(), np.arange(N) < 3)
    found, remedy = remedies.zoom_cells(few, SIZES, certain())
    assert (found, remedy.tried, remedy.applied) == (1.0, False, False)
    assert "3 whole cells" in remedy.why


@pytest.mark.parametrize("sizes", [[np.nan] * 3, [30.0, 45.0, np.nan]])
def test_without_the_size_of_training_cells_nothing_is_changed(sizes):
    """Of the only class that can occur, the border cuts all training cells."""
    sizes = Sizes(np.log(np.array(sizes)), 0.1)
    probabilities = np.repeat(np.eye(3, dtype=np.float32)[2:], N, axis=0)
    found, remedy = remedies.zoom_cells(cells(drawn()), sizes, probabilities)
    assert (found, remedy.tried, remedy.applied) == (1.0, False, False)
    own = 4 * drawn(within=0.12)
    shown = np.full(N, 64) * np.exp(np.random.default_rng(1).normal(size=N) * 0.04)
    found, remedy = remedies.frame_cells(cells(shown), 1.5 * own, sizes, probabilities)
    assert (found, remedy.applied) == (0, False)


def test_crops_around_each_cell_are_framed():
    """Each image is cut at 1.5 times the diameter of its cell, of 4 pixels per training pixel."""
    own = 4 * drawn(within=0.12)
    sides = 1.5 * own
    shown = np.full(N, 96 / 1.5) * np.exp(np.random.default_rng(1).normal(size=N) * 0.04)
    side, remedy = remedies.frame_cells(cells(shown), sides, SIZES, certain())
    assert remedy.applied
    assert side == pytest.approx(4 * 96, rel=0.05)


def test_fields_of_view_are_not_framed():
    sides = np.full(N, 300.0)
    side, remedy = remedies.frame_cells(cells(drawn()), sides, SIZES, certain())
    assert (side, remedy.tried) == (0, False)
    # Of several sizes at one magnification: larger images show their cells smaller.
    sides = 300 * np.exp(np.random.default_rng(2).normal(size=N) * 0.3)
    side, remedy = remedies.frame_cells(cells(drawn() * 300 / sides), sides, SIZES, certain())
    assert (side, remedy.tried, remedy.applied) == (0, True, False)


MOMENT = np.array([[0.5, 0.3, 0.1], [0.3, 0.9, 0.2], [0.1, 0.2, 0.3]])


@pytest.mark.parametrize("factor", [1.6, 3.0])
def test_dense_stains_are_thinned_to_those_of_training(factor):
    matrix, remedy = remedies.thin_stains(factor**2 * MOMENT, MOMENT)
    assert remedy.applied
    np.testing.assert_allclose(matrix, np.eye(3) / factor, atol=1e-9)
    assert f"{100 / factor:.0f} %" in remedy.why


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.3])
def test_other_stains_are_left_alone(factor):
    matrix, remedy = remedies.thin_stains(factor**2 * MOMENT, MOMENT)
    assert (matrix, remedy.applied, remedy.tried) == (UNCHANGED, False, True)
    assert remedy.check["thinnest"] == pytest.approx(1 / factor)


def test_no_stain_becomes_denser():
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    site = turn @ np.diag([4.0, 1.0, 0.25]) @ turn.T
    matrix, remedy = remedies.thin_stains(site, np.eye(3))
    assert remedy.applied
    np.testing.assert_allclose(matrix, turn @ np.diag([0.5, 1, 1]) @ turn.T, atol=1e-9)
    assert (remedy.check["thinnest"], remedy.check["densest"]) == pytest.approx((0.5, 2.0))


@pytest.mark.parametrize(("after", "applied"), [(0.4, True), (0.495, False), (0.6, False)])
def test_colour_is_changed_if_features_come_nearer(after, applied):
    remedy = remedies.judge_colour(np.full(9, 0.5), np.full(9, after))
    assert remedy.applied is applied
    assert remedy.to_dict()["check"] == {"distance_before": 0.5, "distance_after": after}


@pytest.mark.parametrize(
    ("unlike", "by_confusion", "applied"),
    [
        (0.01, (0.49, 0.51), True),
        (0.3, (0.49, 0.51), False),
        (0.01, (0.8, 0.2), False),
        (None, (0.5, 0.5), False),
    ],
)
def test_shares_are_believed_only_where_images_look_as_in_training(unlike, by_confusion, applied):
    half = np.array([0.5, 0.5])
    shares = LabelShift(half, half, half, half, np.array(by_confusion))
    assert remedies.judge_shares(shares, unlike).applied is applied


def test_the_background_becomes_that_of_training():
    def image(colour):
        square = np.empty((1, 48, 48, 3), np.uint8)
        square[:] = colour
        square[:, 16:32, 16:32] = (90, 40, 120)
        return square

    site, home = (cell_finder.find(image(c)) for c in ((200, 200, 205), (250, 225, 200)))
    found = remedies.to_training(site, home, np.ones(1, bool))
    assert isinstance(found, Appearance)
    np.testing.assert_allclose(
        np.asarray(found.apply(image((200, 200, 205))))[0, 0, 0], (250, 225, 200), atol=2
    )
