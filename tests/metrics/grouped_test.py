import json

import numpy as np
import pytest

from bloodjax import metrics
from bloodjax.metrics import classification, group_predictions, grouped
from bloodjax.metrics.intervals import wilson_intervals

CLASSES = ("a", "b", "c")


def draw(n=200, groups=12, seed=0, spread=2.0, decimals=None):
    """Images of groups whose accuracies differ by `spread`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=n)
    of = rng.integers(groups, size=n)
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), labels] += 1 + spread * rng.normal(size=groups)[of]
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    if decimals is not None:  # tied scores
        probabilities = probabilities.round(decimals) + 1e-3
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities, labels, [f"P{i}" for i in of]


def evaluate(probabilities, labels, groups, **options):
    return grouped.evaluate(probabilities, labels, groups, CLASSES, **{"bootstrap": 200, **options})


def test_images_without_groups_have_no_figures():
    probabilities, labels, _ = draw(20)
    assert evaluate(probabilities, labels, [""] * 20) is None


@pytest.mark.parametrize("decimals", [None, 1])
def test_a_resample_of_groups_has_the_metrics_of_its_images(decimals):
    probabilities, labels, groups = draw(decimals=decimals)
    names, of = group_predictions.index_groups(groups)
    counts = np.random.default_rng(1).integers(0, 3, size=(len(names), 4)).astype(float)
    found = classification.Statistics(probabilities, labels, of)(counts)
    for i, times in enumerate(counts.T):
        images = np.repeat(np.arange(len(labels)), times[of].astype(int))
        expected = metrics.evaluate(probabilities[images], labels[images], CLASSES, bootstrap=1)
        for name, values in found.items():
            assert values[i] == pytest.approx(expected[name], abs=1e-12), name


def test_the_interval_of_groups_that_differ_is_wider_and_of_random_ones_is_not():
    probabilities, labels, groups = draw(4000, groups=60)
    images = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=400)["ci95"]["accuracy"]
    found = evaluate(probabilities, labels, groups, bootstrap=400)
    low, high = found["ci95"]["accuracy"]
    assert high - low > 3 * (images[1] - images[0])
    assert found["design_effect"] > 9
    shuffled = np.random.default_rng(1).permutation(groups).tolist()
    low, high = evaluate(probabilities, labels, shuffled, bootstrap=400)["ci95"]["accuracy"]
    assert high - low == pytest.approx(images[1] - images[0], rel=0.25)
    plain = metrics.evaluate(probabilities, labels, CLASSES, bootstrap=1)
    assert found["ci95"].keys() == plain["ci95"].keys()


def test_figures_of_each_group():
    probabilities, labels, groups = draw()
    found = evaluate(probabilities, labels, groups)
    correct = probabilities.argmax(axis=1) == labels
    by_group = {name: correct[[g == name for g in groups]] for name in set(groups)}
    shown = found["per_group"]
    assert {name: (row["n"], row["accuracy"]) for name, row in shown.items()} == {
        name: (len(each), pytest.approx(each.mean())) for name, each in by_group.items()
    }
    accuracies = [row["accuracy"] for row in shown.values()]
    assert accuracies == sorted(accuracies)
    assert found["worst"]["group"] == next(iter(shown))
    spread = found["accuracy"]
    assert (spread["min"], spread["max"]) == (accuracies[0], accuracies[-1])
    assert spread["mean"] == pytest.approx(np.mean(accuracies))
    assert spread["sd"] == pytest.approx(np.std(accuracies, ddof=1))
    assert spread["mean_ci95"][0] < spread["mean"] < spread["mean_ci95"][1]
    assert found["n"] == len(by_group)
    assert found["images"] == sum(map(len, by_group.values())) == 200
    json.dumps(found, allow_nan=False)


def test_an_image_without_a_group_counts_alone():
    probabilities, labels, groups = draw(60)
    groups[:7] = [""] * 7
    found = evaluate(probabilities, labels, groups)
    assert (found["images"], found["ungrouped"]) == (53, 7)
    sizes = [*(row["n"] for row in found["per_group"].values()), *[1] * 7]
    assert found["effective"] == pytest.approx(60**2 / np.sum(np.square(sizes)))
    assert "" not in found["per_group"]


def test_only_groups_that_chance_does_not_explain_are_worse():
    rng = np.random.default_rng(0)
    correct = rng.random(500 * 20) < 0.9
    groups = np.repeat([f"{i:03d}" for i in range(500)], 20)
    correct[:20] = np.arange(20) < 5  # 15 mistakes of 20 in the first group
    labels = np.zeros(len(correct), int)
    probabilities = np.where(correct[:, None], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1])
    found = evaluate(probabilities, labels, groups.tolist(), bootstrap=10)
    assert found["worse"] == ["000"]
    assert (found["n"], found["few"]) == (500, False)


def test_one_group_has_no_interval():
    probabilities, labels, _ = draw(20)
    found = evaluate(probabilities, labels, ["P1"] * 20)
    assert set(found["ci95"].values()) == {None}
    assert found["accuracy"]["mean_ci95"] is None
    assert found["accuracy"]["sd"] is None
    assert found["few"]
    json.dumps(found, allow_nan=False)


def test_groups_without_a_mistake_have_the_interval_of_as_many_trials():
    labels = np.arange(60) % 3
    found = evaluate(np.eye(3)[labels], labels, [f"P{i // 10}" for i in range(60)])
    assert found["ci95"]["accuracy"] == pytest.approx(metrics.wilson_interval(6, 6))
    assert found["accuracy"]["mean_ci95"] == found["ci95"]["accuracy"]
    assert found["design_effect"] is None


@pytest.mark.parametrize("wrong", [1, 2, 4])
def test_groups_of_the_same_accuracy_have_the_interval_of_as_many_trials(wrong):
    labels = np.arange(32) % 4
    answers = np.where(labels < wrong, (labels + 1) % 4, labels)
    keys = [f"P{i // 4 if i < 16 else 4 + i // 8}" for i in range(32)]  # of 4 and of 8 images
    found = evaluate(np.eye(4)[answers], labels, keys)
    groups, share = found["n"], 1 - wrong / 4
    low, high = found["ci95"]["accuracy"]
    assert low == pytest.approx(wilson_intervals(*map(np.array, ([share * 6], [6])))[0, 0])
    assert (groups, low <= share <= high, high - low > 0.3) == (6, True, True)
    assert found["accuracy"]["mean_ci95"] == [low, high]


def test_groups_that_were_trained_on_are_left_out_of_the_others():
    probabilities, labels, groups = draw()
    trained = np.array([group in ("P1", "P5") for group in groups])
    found = evaluate(probabilities, labels, groups, trained_on=trained)["trained_on"]
    assert (found["groups"], found["images"]) == (["P1", "P5"], trained.sum())
    hits = (probabilities.argmax(axis=1) == labels)[~trained]
    assert found["others"]["n"] == len(hits)
    assert found["others"]["accuracy"] == pytest.approx(hits.mean())
    low, high = found["others"]["ci95"]["accuracy"]
    assert low < hits.mean() < high
    every = evaluate(probabilities, labels, groups, trained_on=np.ones(200, bool))
    assert every["trained_on"]["others"] is None
    assert "trained_on" not in evaluate(
        probabilities, labels, groups, trained_on=np.zeros(200, bool)
    )


def test_the_same_seed_gives_the_same_figures():
    probabilities, labels, groups = draw(80)
    assert evaluate(probabilities, labels, groups) == evaluate(probabilities, labels, groups)
    other = evaluate(probabilities, labels, groups, seed=1)
    assert other["ci95"] != evaluate(probabilities, labels, groups)["ci95"]


def test_groups_of_one_image_each_are_no_groups():
    probabilities, labels, _ = draw(30)
    keys = [f"P{i}" for i in range(30)]
    found = evaluate(probabilities, labels, keys)
    assert found == {
        "n": 30,
        "images": 30,
        "ungrouped": 0,
        "effective": 30.0,
        "few": False,
        "sizes": {"min": 1, "median": 1.0, "max": 1},
    }
    trained = np.arange(30) < 3
    found = evaluate(probabilities, labels, keys, trained_on=trained)["trained_on"]
    assert (found["images"], found["others"]["n"]) == (3, 27)


def test_groups_that_are_all_right_have_intervals_with_a_width():
    labels = np.tile([0, 1, 2], 20)
    probabilities = np.eye(3)[labels] * 0.9 + 0.1 / 3
    found = evaluate(probabilities, labels, [f"P{i // 10}" for i in range(60)])["ci95"]
    for name in ("accuracy", "balanced_accuracy", "recall_macro"):
        assert found[name][0] < 0.95
        assert found[name][1] == pytest.approx(1)
    assert found["f1_macro"] is None
    assert found["auc_ovr"] is None
