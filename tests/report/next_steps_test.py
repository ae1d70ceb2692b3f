import numpy as np
import pytest

from bloodjax.metrics import grouped, wilson_interval
from bloodjax.report import next_steps, run_content

CLASSES = ("ig", "monocyte", "platelet")


def evaluation(confusion, ece=0.01, **more):
    """The keys of `metrics.json` that the rules read, given counts [label][predicted]."""
    counts = np.array(confusion)
    n, hits = int(counts.sum()), int(np.trace(counts))
    per_class = {}
    for i, name in enumerate(CLASSES):
        support = int(counts[i].sum())
        per_class[name] = {
            "support": support,
            "recall": counts[i, i] / support if support else None,
            "recall_ci95": wilson_interval(int(counts[i, i]), support) if support else None,
        }
    return {
        "n": n,
        "accuracy": hits / n,
        "ci95": {"accuracy": wilson_interval(hits, n)},
        "ece": ece,
        "per_class": per_class,
        "confusion_matrix": counts.tolist(),
        "classes": list(CLASSES),
        **more,
    }


GOOD = [[500, 0, 0], [0, 500, 0], [0, 0, 500]]


def steps(confusion=GOOD, *, metrics=None, **content):
    """The steps for a run with this confusion matrix and content."""
    evaluations = {"test": evaluation(confusion, **(metrics or {}))}
    return next_steps.collect(
        run_content.RunContent(
            **{"name": "", "config": {}, "history": [], "evaluations": evaluations} | content
        )
    )


def epoch(step, train, validation, loss):
    return {
        "step": step,
        "train": {"accuracy": train, "loss": 0.1},
        "validation": {"accuracy": validation, "loss": loss},
    }


def test_nothing_to_improve():
    assert steps() == []
    assert steps(evaluations={}) == []


def test_a_class_that_is_mostly_taken_for_one_other():
    (step,) = steps([[500, 1, 0], [4, 494, 1], [0, 0, 500]])
    assert step.finding == "Images of monocyte are taken for ig in 4 of 5 mistakes."
    assert step.evidence.startswith("4 of 499 images of monocyte; its recall is 99.0")
    assert step.evidence.endswith("The reverse happens 1×.")
    assert "add training images of monocyte that resemble ig" in step.action
    assert step.section == "confusion"


@pytest.mark.parametrize("row", [[2, 498, 0], [3, 494, 3]])
def test_few_or_scattered_mistakes_are_no_pattern(row):
    assert steps([[500, 0, 0], row, [0, 0, 500]]) == []


def test_the_most_frequent_confusion_comes_first():
    found = steps([[490, 0, 10], [30, 470, 0], [0, 0, 500]])
    assert [step.finding.split()[2] for step in found] == ["monocyte", "ig"]


def test_a_class_of_few_images():
    (step,) = steps([[500, 0, 0], [0, 500, 0], [2, 0, 18]])
    assert step.finding == "The recall of platelet is known only roughly."
    assert "about 140 of a class" in step.action, "1.96^2 * 0.9 * 0.1 / 0.05^2, rounded up"


def test_every_class_of_few_images_is_named():
    (step,) = steps([[500, 0, 0], [0, 13, 0], [0, 0, 3]])
    assert step.finding == "The recall of platelet, and of 1 more class is known only roughly."
    assert step.evidence.endswith("Also of few images: monocyte (13 images, recall 0.77 to 1.00).")


@pytest.mark.parametrize("n", [13, 3])
def test_a_class_of_few_training_images(n):
    counts = {"train": {"ig": 900, "monocyte": n, "platelet": 100}}
    (step,) = steps(counts=counts)
    assert step.finding == f"1 class has fewer than 20 training images: monocyte ({n})."
    assert step.evidence.startswith(f"{n} of 1,0")
    assert "its recall is 100.0" in step.evidence
    assert "95 % interval 99.2" in step.evidence
    assert "--config=recipes/rare" in step.action


def test_enough_training_images_are_no_finding_and_untested_classes_are_said_to_be():
    enough = {"train": dict.fromkeys(CLASSES, 20)}
    assert steps(counts=enough) == []
    counts = {"train": {"ig": 1, "monocyte": 19, "platelet": 100}}
    (step,) = steps([[0, 0, 0], [0, 500, 0], [0, 0, 500]], counts=counts)
    assert step.finding == "2 classes have fewer than 20 training images: ig (1), monocyte (19)."
    assert step.evidence.endswith("no image of it tests that.")


def test_labels_that_may_be_wrong():
    review = run_content.LabelReview([("train", 900, 8, ""), ("test", 100, 1, "")], [])
    (step,) = steps(labels=review)
    assert step.finding == "9 labels may be wrong."
    assert step.evidence.startswith("0.9")
    assert steps(labels=run_content.LabelReview([("test", 100, 0, "")], [])) == []


def test_a_group_that_is_worse():
    keys = ["a"] * 50 + ["b"] * 1450
    probabilities = np.repeat([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]], [10, 1490], axis=0)
    labels = np.zeros(1500, int)
    found = grouped.evaluate(probabilities, labels, keys, CLASSES, bootstrap=9)
    (step,) = steps(metrics={"groups": found})
    assert step.finding == "1 group of images is classified worse than the rest: a."
    assert "a: 80.0" in step.evidence
    trained = np.arange(1500) < 50
    found = grouped.evaluate(probabilities, labels, keys, CLASSES, trained_on=trained, bootstrap=9)
    assert steps(metrics={"groups": found})[0].evidence.startswith("1 group (a; 50 images) has")


def test_a_run_without_calibration():
    assert steps(metrics={"ece": 0.04})[0].section == "calibration"
    fitted = {"ece": 0.04, "calibration": {"method": "temperature"}}
    assert steps(metrics=fitted) == []
    assert steps(metrics={"ece": 0.04, "calibration": None})[0].section == "calibration"


def test_images_unlike_the_training_ones():
    rejection = {"rejected": 0.5, "expected": 0.01}
    (step,) = steps(metrics={"rejection": rejection})
    assert step.finding == "Many images of test are unlike the training images."
    assert steps(metrics={"rejection": rejection | {"rejected": 0.015}}) == []
    assert steps(metrics={"rejection": rejection | {"rejected": None}}) == []


@pytest.mark.parametrize(
    ("coverage", "error", "rest"),
    [(0.7, 0.004, "the error on the rest is 0.4"), (0.0, None, "no answer is left")],
)
def test_many_images_are_referred(coverage, error, rest):
    point = {"coverage": coverage, "error": error}
    (step,) = steps(metrics={"selective": {"operating_point": point}})
    assert rest in step.evidence
    assert steps(metrics={"selective": {"operating_point": {"coverage": 0.9, "error": 0}}}) == []


def test_training_that_ended_too_early_or_overfits():
    better = [epoch(1, 0.9, 0.9, 0.5), epoch(2, 0.95, 0.95, 0.3)]
    assert [step.finding for step in steps(history=better, best_step=2)] == [
        "The network was still improving when training ended."
    ]
    worse = [epoch(1, 0.9, 0.9, 0.5), epoch(2, 0.99, 0.91, 0.6)]
    assert steps(history=worse, best_step=1) == []
    (step,) = steps(history=worse, best_step=2)
    assert step.finding.startswith("The network overfits")


def test_colours_leaks_and_distortions():
    assert steps(baselines={"test": 0.999})[0].section == "summary"
    assert steps(audit={"leakage": 2})[0].section == "data"
    assert steps(audit={"leakage": 2, "cleaned": 1}) == []
    test = evaluation(GOOD)
    distorted = {"accuracy": 0.8}
    (step,) = steps(evaluations={"test": test, "test_distorted": distorted})
    assert "--config=recipes/robust" in step.action


def test_few_images_that_are_all_right_may_be_chance():
    counts = [[7, 0, 0], [0, 7, 0], [0, 0, 6]]
    metrics = {"ci95": {"accuracy": list(wilson_interval(20, 20))}}
    found = steps(counts, metrics=metrics, baselines={"test": 0.9})
    assert any("not clearly better than the colours" in step.finding for step in found)
