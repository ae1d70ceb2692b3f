import json

import numpy as np
import pytest
import scipy.special

from bloodjax import metrics
from bloodjax.evaluation import calibration as files
from bloodjax.metrics import label_calibration
from bloodjax.metrics.calibration import Calibration
from bloodjax.metrics.label_calibration import LabelCalibration


def example(n=800, scale=(1.0, 2.0, 0.5), bias=(0.0, 3.0, -1.0), seed=0):
    """Labels drawn with known probabilities, and log-odds that are scaled and shifted from them."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-1.5, 1.5, (n, 3))
    labels = (rng.random((n, 3)) < scipy.special.expit(true)).astype(np.int32)
    return scipy.special.expit(true * scale + bias), labels, true


def strata(labels):
    return labels.argmax(axis=1)


def test_the_fit_recovers_scale_and_bias_of_each_label():
    p, labels, true = example()
    found = label_calibration.fit(p, labels, strata(labels), "vector", 0)
    fitted = found.apply(p)
    assert np.abs(fitted - scipy.special.expit(true)).mean() < 0.03
    assert metrics.quick(fitted, labels)["ece"] < 0.05 < metrics.quick(p, labels)["ece"]


def test_auto_takes_a_bias_where_it_helps_and_only_there():
    p, labels, _ = example(300)
    assert label_calibration.fit(p, labels, strata(labels), "auto", 0).method == "vector"
    p, labels, _ = example(300, bias=(0.0, 0.0, 0.0))
    assert label_calibration.fit(p, labels, strata(labels), "auto", 0).method == "temperature"
    few = label_calibration.fit(p[:3], labels[:3], strata(labels[:3]), "auto", 0)
    assert few.method == "temperature"


def test_the_order_of_images_stays():
    p, labels, _ = example(200)
    found = label_calibration.fit(1 - p, labels, strata(labels), "vector", 0)  # as wrong as can be
    assert min(found.scale) > 0


def test_none_changes_nothing():
    p, labels, _ = example(50)
    found = label_calibration.fit(p, labels, strata(labels), "none", 0)
    np.testing.assert_array_equal(found.apply(p), p)


def test_certain_probabilities_stay_finite():
    p = np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]], np.float32)
    found = label_calibration.fit(
        p, np.array([[0, 1], [1, 0], [1, 1]]), np.zeros(3, int), "vector", 0
    )
    fitted = found.apply(p)
    assert fitted.dtype == np.float32
    assert np.isfinite(fitted).all()


def test_a_file_has_the_kind_of_calibration(tmp_path):
    labels = LabelCalibration("vector", 1.0, (0.5, -1.0), (1.0, 2.0))
    files.write(tmp_path, {"default": labels, "none": labels}, {})
    assert files.load(tmp_path) == {"default": labels, "none": labels}
    assert isinstance(files.load(tmp_path)["none"], LabelCalibration)
    classes = Calibration("temperature", 2.0)
    found = files.from_dict(json.loads(json.dumps(classes.to_dict())))
    assert type(found) is Calibration


@pytest.mark.parametrize(("p", "method"), [(np.zeros((0, 2)), "auto"), (np.full((3, 2), 0.5), "x")])
def test_no_images_and_unknown_methods_are_refused(p, method):
    with pytest.raises(ValueError, match=r"no images|method 'x'"):
        label_calibration.fit(p, np.zeros(p.shape, int), np.zeros(len(p), int), method, 0)


def test_refinement_does_not_depend_on_the_scale_of_a_label():
    p, labels, true = example(4_000, bias=(0.0, 0.0, 0.0))
    found = label_calibration.refinement(p, labels)
    assert found == metrics.quick(p, labels)["refinement"]
    perfect = metrics.quick(scipy.special.expit(true), labels)["loss"]
    assert found == pytest.approx(perfect, abs=2e-3)
    assert metrics.quick(p, labels)["loss"] > perfect + 0.01
