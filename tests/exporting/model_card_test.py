"""The text of a model card, from facts written by hand."""

import dataclasses

import pytest

from bloodjax.exporting import model_card
from bloodjax.exporting.model_card import Card
from bloodjax.metrics.calibration import Calibration

CLASSES = ["a|b", "c_d <e>", "x"]
CARD = Card(
    name="cells",
    metadata={
        "bloodjax": "1.0",
        "network": "resnet50",
        "classes": CLASSES,
        "image_size": 96,
        "fit": "crop",
        "mean": [0.5, 0.25, 0.125],
        "std": [0.5, 0.5, 0.5],
        "weights": {"location": "", "licence": "", "citation": ""},
    },
    sources={"train": "cells.zip", "test": "cells.zip"},
    sizes={"train": 1200, "test": 300},
    counts={"test": {"x": 300}},
    split="test",
    metrics={},
    files={"README.md": "this card"},
    calibration=Calibration().to_dict(),
)


def changed(**values):
    return dataclasses.replace(CARD, **values)


def test_a_run_without_an_evaluation_says_so():
    text = model_card.render(CARD)
    assert "how good the classifier is is not known" in text
    assert "the probabilities are not calibrated" in text
    assert "no threshold of confidence" in text
    assert "no detector" in text
    assert "model-index" not in text


def test_names_of_classes_are_text_and_not_markup():
    text = model_card.render(CARD)
    assert "a\\|b, c\\_d \\<e\\>, x" in text
    assert "| c\\_d \\<e\\> | not known | 0 |" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    columns = {line.replace("\\|", "").count("|") for line in lines}
    assert columns == {3, 4}  # the table of files, the table of classes


def test_counts_of_an_unreadable_split_are_not_guessed():
    text = model_card.render(CARD)
    assert "| x | not known | 300 |" in text
    assert "| all | 1,200 | 300 |" in text


def test_the_site_of_an_adapted_run_is_named():
    site = {"classes": ["x", "a|b"], "share_ratio": [1.0, 2.0, 3.0], "appearance": None}
    text = model_card.render(changed(metadata={**CARD.metadata, "site": site}))
    assert "for one site, where the classes x, a\\|b can occur; probabilities follow" in text
    assert "get the look" not in text
    assert "**Site**" not in model_card.render(CARD)


def test_a_referral_that_answers_nothing_says_so():
    text = model_card.render(changed(referral={"threshold": 1.5}))
    assert "every image is referred to a person" in text


TEMPERED = Calibration("temperature", 0.5).to_dict()
MEASURED = {
    "n": 300,
    "accuracy": 0.9,
    "ece": 0.01,
    "nll": 0.2,
    "calibration": {
        "method": "temperature",
        "temperature": 0.5,
        "ece_before": 0.1,
        "nll_before": 1.0,
    },
    "selective": {
        "operating_point": {
            "threshold": 0.75,
            "coverage": 0.5,
            "error": 0.125,
            "error_ci95": [0.1, 0.2],
        }
    },
    "rejection": {"method": "knn", "threshold": 3.0, "rejected": 0.25},
}


def test_figures_are_those_of_what_the_classifier_has():
    has = {
        "calibration": TEMPERED,
        "referral": {"threshold": 0.75},
        "detector": {"method": "knn", "threshold": 3.0},
    }
    text = model_card.render(changed(metrics=MEASURED, **has))
    assert "error from 0.1000 to 0.0100" in text
    assert "below 0.7500. On the test split the classifier then answers 50.00 %" in text
    assert "`knn`. It rejects 25.00 % of the test split." in text
    assert "value: 0.9\n" in text


def test_figures_of_another_calibration_and_threshold_are_left_out():
    has = {
        "calibration": Calibration("temperature", 0.7).to_dict(),
        "referral": {"threshold": 0.5},
        "detector": {"method": "knn", "threshold": 4.0},
    }
    text = model_card.render(changed(metrics=MEASURED, **has))
    assert "The metrics above are from before it was fitted." in text
    assert "below 0.5000. How many images that are was not measured." in text
    assert "`knn`. `bloodjax.load`" in text
    assert "model-index" not in text


def test_what_an_unevaluated_run_has_is_named():
    text = model_card.render(
        changed(calibration=TEMPERED, referral={"threshold": 0.5}, detector={"method": "knn"})
    )
    assert "calibrated by temperature scaling" in text
    assert "confidence is below 0.5000" in text
    assert "the method `knn`" in text


@pytest.mark.parametrize(("source", "drawn"), [("synthetic:240", True), ("cells.zip", False)])
def test_rendered_cells_are_named_as_such(source, drawn):
    text = model_card.render(changed(sources={"train": source, "test": source}))
    assert ("A program drew the training images" in text) is drawn
    assert ("no person's cells" in text) is drawn


def test_weights_are_cited_with_their_licence():
    weights = {"location": "hf:timm/resnet50", "licence": "apache-2.0", "citation": "He, 2015"}
    text = model_card.render(changed(metadata={**CARD.metadata, "weights": weights}))
    assert "`hf:timm/resnet50`, which are published under apache-2.0. Paper: He, 2015." in text
    assert "license: apache-2.0\n" in text
    assert "base_model: timm/resnet50\n" in text
    assert "license" not in model_card.render(CARD)
    assert "trained from random weights" in model_card.render(CARD)


def test_code_in_a_table_has_no_column_of_its_own():
    assert model_card.code("a|b") == "`a\\|b`"
    assert model_card.code("a`b") == "`` a`b ``"


def test_a_run_whose_images_are_read_in_a_frame_has_a_card():
    files = {"model.onnx": "a program"}
    text = model_card.render(changed(metadata={**CARD.metadata, "fit": "240px"}, files=files))
    assert "the square of 240 pixels at its centre, with the median colour" in text
    assert "pixels first, with fit={config['fit']}" in text
