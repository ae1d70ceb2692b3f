"""Tests of bloodjax/data/audit/outliers.py."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from bloodjax.data import images
from bloodjax.data.audit import outliers
from bloodjax.data.synthetic import render


@pytest.fixture(scope="module")
def cells():
    return images.resize(render.render_dataset(240, seed=1).images, 48)


def foreign_frames():
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 48)
    return {
        "black": np.zeros((48, 48, 3)),
        "white": np.full((48, 48, 3), 255),
        "noise": rng.integers(0, 256, (48, 48, 3)),
        "ramp": np.stack([np.tile(ramp, (48, 1))] * 3, axis=-1),
        "stripes": np.tile((np.arange(48) // 4 % 2 * 255)[:, None, None], (1, 48, 3)),
        "print": np.where(rng.random((48, 48, 1)) < 0.2, 0, 255).repeat(3, axis=2),
        "meadow": np.where(np.arange(48)[:, None, None] < 24, (120, 180, 240), (60, 140, 50))
        * np.ones((48, 48, 1)),
    }


@pytest.mark.parametrize("name", foreign_frames())
def test_a_foreign_frame_is_odd_and_the_cells_around_it_are_not(cells, name):
    frame = foreign_frames()[name].astype(np.uint8)
    odd = outliers.outlier_scores(np.concatenate([frame[None], cells]))
    assert odd[0] > 1.65
    assert odd[1:].max() < 1.2


def test_three_strange_frames_of_one_kind_do_not_vouch_for_each_other(cells):
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3)).astype(np.uint8)
    assert outliers.outlier_scores(np.concatenate([cells, noise]))[-3:].min() > 1.65


def test_a_variant_in_a_uniform_set_is_not_odd(cells):
    rng = np.random.default_rng(0)
    alike = np.clip(cells[0] + rng.normal(0, 3, (100, 48, 48, 3)), 0, 255).astype(np.uint8)
    brighter = np.clip(cells[:1] * 1.1, 0, 255).astype(np.uint8)
    assert outliers.outlier_scores(np.concatenate([alike, brighter])).max() < 1


def test_few_images_say_nothing(cells):
    black = np.zeros((1, 48, 48, 3), np.uint8)
    assert outliers.outlier_scores(np.concatenate([cells[:48], black])).tolist() == [0] * 49
    assert outliers.outlier_scores(np.concatenate([cells[:49], black]))[-1] > 1.65


def test_neighbour_distance_is_that_of_the_third_nearest_across_blocks():
    features = np.random.default_rng(0).normal(3, 1, (1100, 8)).astype(np.float32)
    reference = np.sort(cdist(features, features), axis=1)[:, 3]
    np.testing.assert_allclose(outliers._neighbour_distance(features), reference, rtol=1e-3)


def test_many_images_are_compared_with_a_random_sample(cells, monkeypatch):
    monkeypatch.setattr(outliers, "MAX_PAIRWISE", 200)
    monkeypatch.setattr(outliers, "_SAMPLED", 120)
    frames = np.stack([frame.astype(np.uint8) for frame in foreign_frames().values()])
    odd = outliers.scores_from_features(outliers.features(np.concatenate([frames, cells])))
    assert odd[:7].min() > 1.65
    assert odd[7:].max() < 1.3


def test_distance_to_sampled_neighbours_is_that_of_the_third_nearest_of_them(monkeypatch):
    monkeypatch.setattr(outliers, "MAX_PAIRWISE", 1000)
    monkeypatch.setattr(outliers, "_SAMPLED", 300)
    features = np.random.default_rng(0).normal(3, 1, (1100, 8)).astype(np.float32)
    drawn = np.random.default_rng(0).choice(1100, 300, replace=False)
    distances = np.sort(cdist(features, features[drawn]), axis=1)
    reference = np.where(np.isin(np.arange(1100), drawn), distances[:, 3], distances[:, 2])
    np.testing.assert_allclose(outliers._neighbour_distance(features), reference, rtol=1e-3)
