import csv

import numpy as np

from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import evaluator, groups
from bloodjax.report import groups as sentences


def cells(keys, labels=None):
    n = len(keys)
    labels = np.arange(n) % 2 if labels is None else np.array(labels)
    names = tuple(f"{i}.png" for i in range(n))
    images = np.zeros((n, 2, 2, 3), np.uint8)
    return Dataset(images, labels.astype(np.int32), names, ("n", "b"), ("",) * n, tuple(keys))


def scored(make_config, dataset, wrong=(), trained=None):
    shown = dataset.labels.copy()
    shown[list(wrong)] = 1 - shown[list(wrong)]
    probabilities = np.eye(2)[shown] * 0.8 + 0.1
    return probabilities, evaluator.score(probabilities, dataset, make_config(), trained)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_of_groups(make_config, tmp_path):
    dataset = cells(["x", "x", "x", "y", ""], [0, 0, 1, 1, 0])
    probabilities, result = scored(make_config, dataset, wrong=[0])
    evaluator.write(tmp_path, result, dataset, probabilities)
    found = rows(tmp_path / groups.FILE)
    assert [(row["group"], row["n"], row["label"], row["majority"]) for row in found] == [
        ("x", "3", "n", "b"),
        ("y", "1", "b", "b"),
    ]
    assert [row["accuracy"] for row in found] == ["0.666667", "1.000000"]
    assert (found[0]["predicted n"], found[0]["true n"]) == ("0.333333", "0.666667")
    assert found[0]["probability n"] == "0.366667"
    table = rows(tmp_path / "predictions.csv")
    assert [row["group"] for row in table] == ["x", "x", "x", "y", ""]
    assert list(table[0])[-3:] == ["n", "b", "group"]


def test_images_without_groups_have_no_table_and_lose_that_of_others(make_config, tmp_path):
    (tmp_path / groups.FILE).write_text("of an earlier evaluation")
    dataset = cells([""] * 6)
    probabilities, result = scored(make_config, dataset)
    assert "groups" not in result
    evaluator.write(tmp_path, result, dataset, probabilities)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "predictions.csv"]
    assert "group" not in rows(tmp_path / "predictions.csv")[0]
    assert groups.lines(result) == []


def test_what_is_logged(make_config):
    keys = [f"P{i // 8:02d}" for i in range(96)]
    labels = np.arange(96) % 8 < 5  # no ties: five images of b and three of n in each group
    _, result = scored(make_config, cells(keys, labels), wrong=range(6))
    spread, interval, together = groups.lines(result)
    assert spread == "accuracy in 12 groups from 0.2500 (P00, 8 images) to 1.0000, median 1.0000"
    assert interval.startswith("95 % interval of the accuracy 0.")
    assert interval.endswith("if groups are resampled")
    assert together.startswith("accuracy of 12 whole groups: majority 0.9167 (0.")
    _, few = scored(make_config, cells(["x"] * 4 + ["y"] * 5), wrong=[0])
    assert sentences.few_remark(few["groups"]) in groups.lines(few)[1]
    _, one = scored(make_config, cells(["x"] * 4))
    assert groups.lines(one)[:2] == [
        "all 4 images with a group are of x",
        "one group says nothing about other groups",
    ]
    _, single = scored(make_config, cells(list("abcdef")))
    assert groups.lines(single) == []


def test_groups_of_the_training_data_are_named_first(make_config):
    trained = np.arange(12) < 4
    _, result = scored(make_config, cells([f"P{i // 4}" for i in range(12)]), trained=trained)
    assert groups.lines(result)[0].startswith("1 group (P0; 4 images) has training images too")
    assert result["groups"]["trained_on"]["others"]["n"] == 8


def test_a_table_of_images_without_labels():
    dataset = cells(["x", "x", "y"])
    table = groups.table(dataset, ("a", "b"), np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]), False)
    assert list(table) == [
        *("group", "n", "majority", "mean_probability"),
        *("predicted a", "predicted b", "probability a", "probability b"),
    ]
    assert table["majority"] == ["a", "b"]
