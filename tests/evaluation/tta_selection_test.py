import itertools
import json

import numpy as np
import pytest
from scipy.special import softmax

from bloodjax.augment import tta, views
from bloodjax.augment.tta import AVERAGES, TTAConfig
from bloodjax.errors import UserError
from bloodjax.evaluation import tta_selection

N, CLASSES = 200, 5
NAME = "flip"  # Four views.


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).integers(0, CLASSES, N)


@pytest.fixture(scope="module")
def each(labels):
    """Four views: the second is the best, the third adds to it, the last is wrong."""
    rng = np.random.default_rng(1)
    true = np.eye(CLASSES)[labels]
    noise = rng.normal(size=(4, N, CLASSES))
    strength = np.array([1.0, 2.5, 2.0, -1.0])[:, None, None]
    return softmax(strength * true + 1.2 * noise, axis=-1).astype(np.float32)


def loss(each, labels, weights, average):
    p = tta_selection.combine(each, np.asarray(weights), average)
    return -np.log(p[np.arange(len(labels)), labels]).mean()


def test_combine_is_the_mean_or_the_geometric_mean(each):
    weights = np.array([0.5, 0.25, 0.25, 0.0])
    expected = np.average(each, axis=0, weights=weights)
    np.testing.assert_allclose(
        tta_selection.combine(each, weights, "probabilities"), expected, 1e-5
    )
    product = np.prod(each.astype(float) ** weights[:, None, None], axis=0)
    expected = product / product.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(tta_selection.combine(each, weights, "logits"), expected, 1e-5)


@pytest.mark.parametrize("average", AVERAGES)
def test_greedy_takes_the_best_next_view_each_round(each, labels, average):
    taken, losses = [], []
    for _ in range(6):
        options = [np.bincount([*taken, v], minlength=4) / (len(taken) + 1) for v in range(4)]
        found = [loss(each, labels, option, average) for option in options]
        taken.append(int(np.argmin(found)))
        losses.append(min(found))
    best = int(np.argmin(losses)) + 1
    expected = np.bincount(taken[:best], minlength=4) / best
    np.testing.assert_allclose(tta_selection.greedy(each, labels, average, rounds=6), expected)
    assert expected[3] == 0


def test_greedy_keeps_the_image_alone_where_views_only_harm(labels):
    good = softmax(8.0 * np.eye(CLASSES)[labels], axis=-1)
    bad = np.full((3, N, CLASSES), 1 / CLASSES)
    weights = tta_selection.greedy(np.stack([good, *bad]), labels, "probabilities")
    assert weights.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("average", AVERAGES)
def test_free_weights_are_the_best_of_all(each, labels, average):
    weights = tta_selection.free_weights(each, labels, average)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    reached = loss(each, labels, weights, average)
    steps = np.arange(11) / 10
    grid = [w for w in itertools.product(steps, repeat=4) if abs(sum(w) - 1) < 1e-9]
    assert len(grid) == 286
    assert reached <= min(loss(each, labels, w, average) for w in grid) + 1e-6
    assert weights[3] == 0


@pytest.mark.parametrize("method", tta.METHODS)
@pytest.mark.parametrize("average", AVERAGES)
def test_what_is_selected_is_no_worse_than_the_image_or_the_mean(each, labels, method, average):
    config, content = tta_selection.select(each, labels, NAME, average, method)
    assert content["nll"]["selected"] <= content["nll"]["image"]
    assert content["nll"]["selected"] <= content["nll"]["mean"]
    assert content["nll"]["mean"] == pytest.approx(loss(each, labels, [0.25] * 4, average))
    assert content["accuracy"]["image"] == np.mean(each[0].argmax(axis=1) == labels)
    names = list(views.named(NAME))
    assert {name for name, _ in config.weights} <= set(names[:3])
    assert dict(config.weights) == content["weights"]
    assert (config.views, config.average, content["n"]) == (NAME, average, N)


def test_the_selection_comes_back_from_its_file(each, labels, tmp_path):
    assert tta_selection.load(tmp_path) is None
    config, content = tta_selection.select(each, labels, NAME, "logits", "weights")
    tta_selection.write(tmp_path, content)
    assert tta_selection.load(tmp_path) == config
    assert isinstance(hash(config), int)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": {"sideways": 1.0}},
        {"weights": {}},
        {"weights": {"image": 0.5}},
        {"weights": {"image": "1"}},
        {"views": "d8"},
        {"average": "medians"},
        None,
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, change):
    content = {"views": NAME, "average": "logits", "weights": {"image": 1.0}}
    text = "{" if change is None else json.dumps(content | change)
    (tmp_path / "tta.json").write_text(text)
    with pytest.raises(UserError, match=r"tta\.json: .*expected"):
        tta_selection.load(tmp_path)
    tta_selection.write(tmp_path, content)
    assert tta_selection.load(tmp_path) == TTAConfig(NAME, "logits", (("image", 1.0),))


def test_the_former_name_of_the_image_itself_is_understood(tmp_path):
    weights = {"picture": 0.5, "blur": 0.5}
    content = {"views": "robust", "average": "logits", "weights": weights}
    tta_selection.write(tmp_path, content)
    assert tta_selection.load(tmp_path).weights == (("image", 0.5), ("blur", 0.5))
