import csv

import numpy as np

from bloodjax import config as config_lib
from bloodjax.attribution import overlay
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import classifier, label_review, run_report
from bloodjax.evaluation.ensemble import Ensemble
from bloodjax.training.input_pipeline import Splits


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


def model():
    """A classifier without a network; its heat maps are 1 for the class 0, else 0."""

    def explain(images, predicted, method=None):
        return [np.full((8, 8), float(label == 0), np.float32) for label in predicted], predicted

    found = classifier.Classifier.__new__(classifier.Classifier)
    found.explain = explain
    found.config = config_lib.defaults()
    return found


def headline(n=30):
    """Cells of three classes, of which every seventh is taken for the next one."""
    labels = (np.arange(n) % 3).astype(np.int32)
    predicted = np.where(np.arange(n) % 7 == 6, (labels + 1) % 3, labels)
    probabilities = np.full((n, 3), 0.1, np.float32)
    probabilities[np.arange(n), predicted] = 0.8
    images = np.random.default_rng(0).integers(0, 200, (n, 8, 8, 3), np.uint8)
    names = tuple(f"{i}.png" for i in range(n))
    groups = tuple(f"slide {i % 2}" for i in range(n))
    cells = Dataset(images, labels, names, ("a", "b", "c"), ("",) * n, groups)
    return run_report.Headline(cells, probabilities)


def test_pictures_have_the_heat_map_of_the_predicted_class():
    shown = headline()
    found = run_report._pictures(model(), shown)
    assert [picture.name for picture in found["mistakes"]] == [
        "6.png",
        "13.png",
        "20.png",
        "27.png",
    ]
    assert found["cells"].keys() == {
        ("a", "a"),
        ("a", "b"),
        ("b", "b"),
        ("b", "c"),
        ("c", "c"),
        ("c", "a"),
    }
    pictures = [
        one for both in found["examples"].values() for one in (*both.typical, *both.doubtful)
    ]
    assert len(pictures) == 18
    for picture in (*found["mistakes"], *pictures):
        np.testing.assert_array_equal(
            picture.image, shown.dataset.images[int(picture.name.removesuffix(".png"))]
        )
        assert (picture.overlay != picture.image).any() == (picture.predicted == "a")


def test_an_ensemble_has_the_mean_of_its_members_heat_maps():
    shown, other = headline(), model()
    other.explain = lambda images, predicted, method: (
        [np.zeros((8, 8), np.float32) for _ in predicted],
        predicted,
    )
    both = Ensemble.__new__(Ensemble)
    both.members, both.config = {"a": model(), "b": other}, other.config
    found = run_report._overlays(both, shown, np.array([0, 1]))
    image, half = shown.dataset.images[0], np.full((8, 8), 0.5, np.float32)
    np.testing.assert_array_equal(found[0], overlay.overlay(image, half))
    assert found.keys() == {0, 1}


def test_of_several_processes_none_has_heat_maps(monkeypatch):
    monkeypatch.setattr(run_report.distributed, "count", lambda: 2)
    assert run_report._overlays(model(), headline(), np.array([0])) == {}


def test_suspects_have_their_images():
    cells = headline().dataset
    finding = label_review.Finding("4.png", "train", "b", "c", 0.1, 0.8, 0.7, "x")
    review = label_review.Review((finding,), (("train", 30, 1, "x"),))
    found = run_report._labels(Splits(cells, None, None), review)
    assert (found.images, found.found) == (30, 1)
    np.testing.assert_array_equal(found.suspects[0].image, cells.images[4])
