import csv
import dataclasses
import types

import numpy as np
import pytest

from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import feature_heads, label_review, rejection
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.training.input_pipeline import Splits

CLASSES = ("a", "b", "c")


def dataset(n, split, flipped=(), groups=None):
    """Images that show their true class as a grey value; the labels at `flipped` are wrong."""
    true = np.arange(n) % 3
    labels = true.copy()
    labels[list(flipped)] = (true[list(flipped)] + 1) % 3
    images = np.empty((n, 2, 2, 3), np.uint8)
    images[:] = true[:, None, None, None] * 100 + np.arange(n)[:, None, None, None] % 5
    names = tuple(f"{split}/{i}.png" for i in range(n))
    groups = groups or ("",) * n
    return Dataset(images, labels.astype(np.int32), names, CLASSES, ("",) * n, groups)


def model(kind=Classifier):
    """A model without a network, which sees the grey value."""

    def predict(images):
        probabilities = np.full((len(images), 3), 0.02, np.float32)
        probabilities[np.arange(len(images)), images[:, 0, 0, 0] // 100] = 0.96
        return probabilities

    def describe(images):
        grey = images[:, 0, 0, 0].astype(np.float32)
        features = np.stack([grey, grey**2 / 100], axis=1)
        return features, features[:, :1]

    found = kind.__new__(kind)
    found.predict, found.describe = predict, describe
    found.config = types.SimpleNamespace(seed=0)
    return found


def test_wrong_labels_of_every_split_are_listed(tmp_path):
    splits = Splits(
        dataset(90, "train", [4, 50]), dataset(30, "validation"), dataset(30, "test", [7])
    )
    result = label_review.review(model(), tmp_path, splits)
    found = {finding.name: finding for finding in result.findings}
    assert found.keys() == {"train/4.png", "train/50.png", "test/7.png"}
    assert (found["train/4.png"].label, found["train/4.png"].suggested) == ("c", "b")
    assert found["test/7.png"].suggested_probability == pytest.approx(0.96)
    assert found["test/7.png"].score == pytest.approx(0.94)
    assert result.judged == (
        ("train", 90, 2, label_review.BY_HEADS),
        ("validation", 30, 0, label_review.BY_NETWORK),
        ("test", 30, 1, label_review.BY_NETWORK),
    )


def test_the_file_has_a_row_for_each_finding(tmp_path):
    result = label_review.review(model(), tmp_path, Splits(dataset(90, "train", [4]), None, None))
    with (tmp_path / label_review.FILE).open(newline="") as file:
        (row,) = csv.DictReader(file)
    (finding,) = result.findings
    assert list(row) == [field.name for field in dataclasses.fields(finding)]
    assert (row["name"], row["split"], row["label"]) == ("train/4.png", "train", "c")
    assert float(row["score"]) == pytest.approx(finding.score, abs=1e-6)
    assert row["judged_by"] == label_review.BY_HEADS


def test_known_features_are_not_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(label_review, "MAX_TRAIN", 60)
    splits = Splits(dataset(90, "train", [4, 50]), None, None)
    expected = label_review.review(model(), tmp_path, splits)
    some, counts = np.arange(0, 90, 2), []
    known = rejection.Described(some, model().describe(splits.train.images[some])[0])
    watched, describe = model(), model().describe
    watched.describe = lambda images: (counts.append(len(images)), describe(images))[1]
    assert label_review.review(watched, tmp_path, splits, described=known) == expected
    assert 0 < counts[0] < 60
    counts.clear()
    every = rejection.Described(np.arange(90), model().describe(splits.train.images)[0])
    assert label_review.review(watched, tmp_path, splits, described=every) == expected
    assert counts == []


def test_known_probabilities_are_used(tmp_path):
    train = dataset(30, "train")
    probabilities = np.full((30, 3), 0.02, np.float32)
    probabilities[np.arange(30), train.labels] = 0.96
    probabilities[3] = [0.01, 0.01, 0.98]
    result = label_review.review(
        model(Ensemble), tmp_path, Splits(train, None, None), {"train": probabilities}
    )
    assert [(f.name, f.suggested) for f in result.findings] == [("train/3.png", "c")]
    assert result.judged == (("train", 30, 1, label_review.BY_FOLDS),)


def test_an_ensemble_does_not_judge_what_its_members_were_trained_on(tmp_path):
    splits = Splits(dataset(30, "train"), None, dataset(30, "test", [7]))
    result = label_review.review(model(Ensemble), tmp_path, splits)
    assert [split for split, *_ in result.judged] == ["test"]


@pytest.mark.parametrize(
    "train", [dataset(5, "train"), dataset(60, "train", groups=tuple("abc" * 20))]
)
def test_too_few_images_or_groups_for_folds(tmp_path, train, caplog):
    with caplog.at_level("INFO", "bloodjax"):
        result = label_review.review(model(), tmp_path, Splits(train, None, None))
    assert result == label_review.Review((), ())
    assert "are not judged: a class has too few images or groups" in caplog.text
    assert len((tmp_path / label_review.FILE).read_text().splitlines()) == 1


def test_features_that_are_not_finite_judge_nothing(tmp_path, caplog):
    broken = model()
    broken.describe = lambda images: (np.full((len(images), 2), np.nan, np.float32),) * 2
    with caplog.at_level("INFO", "bloodjax"):
        result = label_review.review(broken, tmp_path, Splits(dataset(90, "train"), None, None))
    assert result == label_review.Review((), ())
    assert "features are not finite" in caplog.text


def test_images_of_a_group_are_judged_by_heads_without_the_group(tmp_path, monkeypatch):
    seen = []
    heads = feature_heads.out_of_fold

    def out_of_fold(features, labels, fold_of, num_classes):
        seen.append(fold_of)
        return heads(features, labels, fold_of, num_classes)

    monkeypatch.setattr(feature_heads, "out_of_fold", out_of_fold)
    groups = tuple(f"patient {i // 6}" for i in range(90))
    label_review.review(model(), tmp_path, Splits(dataset(90, "train", (), groups), None, None))
    (fold_of,) = seen
    assert set(fold_of.tolist()) == set(range(feature_heads.FOLDS))
    assert all(len(set(fold_of[i : i + 6].tolist())) == 1 for i in range(0, 90, 6))


def test_large_training_splits_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(label_review, "MAX_TRAIN", 60)
    result = label_review.review(model(), tmp_path, Splits(dataset(90, "train"), None, None))
    assert result.judged[0][1] == 60
