import io
import xml.etree.ElementTree as ET

import numpy as np
from PIL import Image

from bloodjax.report import training_plots

from . import examples


def test_training_curves_mark_phases_and_the_kept_epoch():
    curves = training_plots.training_curves(examples.history("hhffg"), best_step=40)
    assert list(curves) == ["loss", "accuracy", "learning_rate"]
    for svg in curves.values():
        assert examples.dotted_lines(svg) == 2
    assert "best: epoch 4" in examples.texts(curves["loss"])
    assert {"train", "validation"} <= set(examples.texts(curves["accuracy"]))


def test_training_curves_without_validation():
    texts = examples.texts(
        training_plots.training_curves(examples.history("h", validation=False), best_step=10)[
            "loss"
        ]
    )
    assert "train" in texts
    assert "validation" not in texts


def test_learning_rate_of_zero_leaves_a_gap():
    history = examples.history()
    history[-1]["learning_rate"] = 0.0
    ET.fromstring(training_plots.training_curves(history)["learning_rate"])


def test_a_range_test_is_a_png_file_too():
    image = Image.open(io.BytesIO(training_plots.range_test_png(examples.RANGE_TEST)))
    assert (image.format, image.size) == ("PNG", (624, 408))
    assert np.asarray(image.convert("L")).std() > 10
