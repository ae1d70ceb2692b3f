import numpy as np
import pytest

import bloodjax
from bloodjax.adaptation import self_training
from bloodjax.adaptation.fine_tuning import LabelledImages
from bloodjax.data.synthetic import render
from bloodjax.evaluation.site import Site

POSSIBLE = ("eosinophil", "lymphocyte", "monocyte", "neutrophil")


@pytest.fixture(scope="module")
def cells():
    return render.render_dataset(64, 32, seed=11)


def labelled(cells, rows):
    return LabelledImages(np.asarray(cells.images)[rows], cells.labels[rows])


def test_the_surer_half_of_each_predicted_class_is_chosen():
    probabilities = np.array(
        [[0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.7, 0.3], [0.45, 0.55]], np.float32
    )
    np.testing.assert_array_equal(self_training.surer(probabilities), [0, 2, 4])
    assert len(self_training.surer(np.zeros((0, 2), np.float32))) == 0


def test_it_needs_a_list_of_classes_and_enough_images(trained, cells):
    model = bloodjax.load(trained)
    home = labelled(cells, slice(0, 8))
    images = np.asarray(cells.images)
    variables, remedy = self_training.fit(model, images, home, home, 0)
    assert variables is None
    assert (remedy.tried, remedy.applied) == (False, False)
    model.site = Site(classes=POSSIBLE)
    variables, remedy = self_training.fit(model, images[:6], home, home, 0)
    assert variables is None
    assert "expected 20" in remedy.why


@pytest.mark.slow
def test_classes_that_cannot_occur_become_less_probable(trained, cells):
    model = bloodjax.load(trained)
    model.site = Site(classes=POSSIBLE)
    there = np.isin(cells.labels, [cells.classes.index(name) for name in POSSIBLE])
    images = np.concatenate([np.asarray(cells.images)[there]] * 2)
    home = labelled(cells, slice(None))
    variables, remedy = self_training.fit(model, images, home, home, 0)
    assert remedy.tried
    assert remedy.applied == (variables is not None)
    check = remedy.check
    lost = check["home_accuracy_before"] - check["home_accuracy_after"]
    falls = check["outside_classes_after"] < check["outside_classes_before"]
    assert remedy.applied == (lost <= 0.01 and falls)
    assert falls
