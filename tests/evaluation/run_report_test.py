import csv

import numpy as np

from bloodjax.data.synthetic import render
from bloodjax.evaluation import classifier, label_review, run_report


def test_a_run_s_report_has_the_images_of_its_headline(trained):
    page = (trained / "report/index.html").read_text("utf-8")
    for section in ("next", "confusion", "calibration", "referral", "unlike", "examples", "labels"):
        assert f'<section id="{section}"' in page
    assert page.count('alt="where the network looked"') > 8
    assert '<section id="groups"' not in page


def test_a_run_lists_the_labels_to_look_at_again(trained):
    with (trained / label_review.FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} <= {"train", "validation", "test"}
    page = (trained / "report/index.html").read_text("utf-8")
    assert label_review.BY_HEADS in page


def test_pictures_have_the_heat_map_of_the_predicted_class(trained):
    cells = render.render_dataset(16, 32, seed=3)
    model = classifier.load(trained)
    probabilities = model.predict(cells.images)
    found = run_report._pictures(model, run_report.Headline(cells, probabilities))
    shown = [one for both in found["examples"].values() for one in (*both.typical, *both.doubtful)]
    names = dict(zip(cells.names, range(16), strict=True))
    for picture in shown:
        i = names[picture.name]
        np.testing.assert_array_equal(picture.image, cells.images[i])
        assert picture.predicted == cells.classes[probabilities[i].argmax()]
        assert picture.overlay.shape == picture.image.shape
        assert (picture.overlay != picture.image).any()
