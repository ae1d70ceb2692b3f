import numpy as np

from bloodjax.metrics import grouped
from bloodjax.report import groups, html, numbers, run_page


def metrics_of(n, images=6, mistakes=3, **more):
    """The keys of `metrics.json` that the section reads, for `n` groups of the class a or b."""
    labels = np.repeat(np.arange(n) % 2, images)
    labels[::images] = 1 - labels[::images]  # an image of another class in each
    probabilities = np.eye(2)[labels] * 0.8 + 0.1
    probabilities[1 : mistakes * images : images] = 0.4, 0.6
    keys = [f"patient <{i:04d}>" for i in range(n) for _ in range(images)]
    found = grouped.evaluate(probabilities, labels, keys, ("a", "b"), bootstrap=50, **more)
    accuracy = float(np.mean(probabilities.argmax(axis=1) == labels))
    return {"accuracy": accuracy, "ci95": {"accuracy": [0.5, 0.9]}, "groups": found}


def test_images_of_a_group_each_have_no_section():
    assert groups.section(metrics_of(5, images=1)) is None
    assert groups.section({"accuracy": 1.0}) is None


def test_many_groups_fold_into_a_readable_table():
    shown = groups.section(metrics_of(1100))
    assert (len(shown["rows"]), len(shown["folded"]), shown["left_out"]) == (20, 1000, 80)
    assert shown["differs"]
    few = groups.section(metrics_of(12))
    assert (len(few["rows"]), few["folded"]) == (12, [])


def test_few_groups_are_said_to_say_little():
    found = metrics_of(40)["groups"]
    assert groups.few_remark(found) == ""
    remark = groups.few_remark(metrics_of(4)["groups"])
    assert remark.startswith("4 groups are too few for an interval")
    lopsided = groups.few_remark({"n": 40, "few": True, "effective": 2.5})
    assert "of different sizes, which say as much as 2.5 equal ones" in lopsided
    assert groups.few_remark({"n": 1}) == "one group says nothing about other groups"


def test_groups_that_were_trained_on_are_named():
    assert groups.trained_on_remark(metrics_of(6)["groups"]) == ""
    trained = np.arange(36) < 24
    line = groups.trained_on_remark(metrics_of(6, trained_on=trained)["groups"])
    assert line.startswith(
        "4 groups (patient <0000>, patient <0001>, patient <0002> and 1 more; 24 images) have"
    )
    assert "on the other 12 images 1.0000" in line
    every = groups.trained_on_remark(metrics_of(6, trained_on=np.ones(36, bool))["groups"])
    assert every.endswith("the accuracy may be too high")


def test_intervals_differ_if_they_are_shown_as_different():
    assert not groups.differs([0.5, 0.9], [0.5001, 0.9])
    assert groups.differs([0.5, 0.9], [0.49, 0.9])
    assert groups.differs([0.5, 0.9], None)


def test_the_page_of_many_groups_stays_small():
    evaluation = {
        "n": 3000,
        "classes": ["a", "b"],
        "confusion_matrix": [[1, 0], [0, 1]],
        "per_class": {},
        **dict.fromkeys(run_page.SCORES, 0.5),
        **metrics_of(500),
    }
    values = html.render(
        "run/groups.html",
        groups=groups.section(evaluation),
        headline={"name": "test", "expected": [0.5, 0.9]},
        percent=numbers.percent,
        interval=numbers.interval,
        number=numbers.number,
        points="{:+.3f}".format,
    )
    assert len(values.encode()) < 400_000
    assert values.count('<tr><th scope="row">patient &lt;') == 500
    assert "The other 480 groups" in values
    assert "differential count" in values
