import copy
import json
from html.parser import HTMLParser

import numpy as np
import pytest

from bloodjax.report import site_page
from bloodjax.report.site_page import SitePictures

CLASSES = ["eosinophil", "lymphocyte", "neutrophil <b>"]


def spread(*values):
    keys = ("low", "lower_quartile", "median", "upper_quartile", "high")
    return dict(zip(keys, values, strict=True))


ABOUT = {
    "site": {"source": "smears/second-hospital", "n": 1234},
    "distance": {
        "n": 1234,
        "n_training": 2000,
        "classes": CLASSES,
        "backgrounds": {"training": [251.4, 225.0, 200.3], "site": [198.4, 196.7, 195.6]},
        "measures": [
            {
                "name": "background_blue",
                "title": "Blue of the background, divided by red",
                "training": spread(0.791, 0.794, 0.796, 0.799, 0.806),
                "site": spread(0.958, 0.976, 0.984, 0.997, 1.023),
                "state": "far",
                "sentence": "The background is bluer: its blue is 0.98 times its red instead of "
                "0.80 times.",
            },
            {
                "name": "nucleus_diameter",
                "title": "Diameter of the nuclei (pixels)",
                "training": spread(22.7, 37.9, 42.2, 47.6, 57.2),
                "site": spread(44.2, 46.9, 49.7, 52.7, 60.8),
                "state": "different",
                "sentence": "Nuclei are 1.2 times as large: 50 pixels across instead of 42.",
            },
            {
                "name": "cell_diameter",
                "title": "Diameter of the cells (pixels)",
                "training": spread(29.7, 54.5, 66.4, 73.2, 82.9),
                "site": spread(57.6, 66.9, 70.5, 74.2, 81.5),
                "state": "like",
                "sentence": "",
            },
        ],
        "shares": [
            {
                "name": "unlike",
                "title": "The run's detector finds the image unlike the training images",
                "training": 0.01,
                "site": 0.73,
                "state": "far",
                "sentence": "The run's detector finds 73 % of the images unlike the training "
                "images; 1 % were expected.",
            }
        ],
    },
    "accuracy_estimate": {
        "before": {"estimate": 0.712, "low": 0.64, "high": 0.78, "method": "atc"},
        "after": {"estimate": 0.883, "low": 0.84, "high": 0.92, "method": "atc"},
    },
    "referral": {
        "before": {
            "threshold": 0.935,
            "referred": 0.41,
            "estimated_error": 0.124,
            "holds": False,
        },
        "after": {
            "threshold": 0.935,
            "target_error": 0.005,
            "referred": 0.29,
            "estimated_error": 0.008,
            "error_low": 0.003,
            "error_high": 0.021,
            "holds": True,
        },
    },
    "shares": {
        "classes": CLASSES,
        "training": [0.2, 0.1, 0.7],
        "site": [0.25, 0.12, 0.63],
        "low": [0.2, 0.09, 0.58],
        "high": [0.3, 0.16, 0.68],
    },
    "remedies": [
        {
            "name": "colour",
            "tried": True,
            "applied": True,
            "check": {"distance_before": 41.25, "distance_after": 12.5, "spread": float("nan")},
            "why": "It brings the features nearer to those of training images.",
        },
        {
            "name": "size",
            "tried": True,
            "applied": False,
            "check": {"factor": 1.012},
            "why": "The cells are as large as the training cells of their classes.",
        },
        {
            "name": "another_remedy",
            "tried": False,
            "applied": False,
            "check": {},
            "why": "Too few images are answered with confidence.",
        },
    ],
    "labelled": {
        "method": "head",
        "cross_validation": {
            "n": 29,
            "folds": 3,
            "classes": {"eosinophil": 10, "lymphocyte": 9, "neutrophil <b>": 10, "platelet": 0},
            "methods": {
                "temperature": {"loss": 0.613, "worse": 0.402, "se": 0.11, "accuracy": 0.7931},
                "head": {"loss": 0.224, "worse": 0.013, "se": 0.02, "accuracy": 0.931},
                "layers": {"loss": 0.211, "worse": 0.0, "se": 0.0, "accuracy": 0.9655},
            },
            "why": "all layers are better by less than one standard error",
        },
        "home": {"before": 0.992, "after": 0.991, "n": 1500},
    },
}
RNG = np.random.default_rng(0)
PICTURES = SitePictures(
    training=RNG.integers(0, 255, (30, 32, 32, 3), np.uint8),
    site=RNG.integers(0, 255, (7, 32, 32, 3), np.uint8),
    after=RNG.integers(0, 255, (7, 32, 32, 3), np.uint8),
)


class Page(HTMLParser):
    """The page's sources, ids and visible text."""

    def __init__(self, html):
        super().__init__()
        self.sources, self.ids, self.text, self._tag = [], [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self._tag = tag
        self.sources += [v for k, v in attributes if k in ("src", "href") and v[0] != "#"]
        self.ids += [v for k, v in attributes if k == "id"]

    def handle_data(self, data):
        if self._tag != "style":
            self.text += " ".join(data.split()) + "\n"


def built(about=ABOUT, pictures=PICTURES, **kwargs):
    return Page(site_page.build("run <i>", about, pictures, **kwargs))


def without(*keys):
    return {key: value for key, value in ABOUT.items() if key not in keys}


def test_it_shows_everything_and_needs_no_other_file():
    page = built(json.loads(json.dumps(ABOUT)))
    assert "Another laboratory: run <i>" in page.text
    assert "1,234 images of smears/second-hospital" in page.text
    for words in (
        "The background is bluer: its blue is 0.98 times",
        "Nuclei are 1.2 times as large",
        "73 % of the images unlike",
        "198, 197, 196",
        "0.794 to 0.799",
        "88.3 %",
        "71.2 %",
        "64.0–78.0",
        "neutrophil <b>",
        "58.0–68.0",
        "Background brought to the colour",
        "distance before 41.25",
        "spread –",
        "The cells are as large as the training cells of their classes.",
        "another remedy",
        "tried, not applied",
        "not tried",
        "Taken: A new last layer.",
        "All layers are better by less than one standard error.",
        "10 eosinophil, 9 lymphocyte",
        "79.3 %",
        "+0.402 ± 0.110",
        "on 1,500 validation images",
        "99.1 %",
    ):
        assert words in page.text, words
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.sources)
    assert len(page.sources) == site_page.MAX_PICTURES + 7 + 7
    sections = ("summary", "distance", "pictures", "remedies", "estimate", "shares", "labelled")
    assert set(sections) < set(page.ids)


def test_far_quantities_come_first():
    text = built().text
    far, different = text.index("finds 73 % of"), text.index("Nuclei are 1.2")
    assert far < different


@pytest.mark.parametrize(
    ("holds", "words"),
    [
        (True, "keeps its promise at this site: 29.0 % of the images"),
        (False, "does not keep its promise at this site"),
        (None, "the promised error cannot be checked"),
    ],
)
def test_the_promise_holds_or_is_withdrawn(holds, words):
    about = copy.deepcopy(ABOUT)
    about["referral"]["after"]["holds"] = holds
    text = built(about).text
    assert words in text
    assert ("Label a few cells" in text) == (holds is False)
    assert "0.3–2.1" in text
    assert ("(0.5 % was promised)" in text) == (holds is not None)


def test_parts_that_are_missing_are_left_out():
    page = built(without("labelled", "shares", "distance", "remedies", "accuracy_estimate"))
    assert "distance" not in page.ids
    assert "labelled" not in page.ids
    assert "pictures" in page.ids
    assert "no error on the images that it answers was promised" in built(without("referral")).text
    nothing = {"site": {"source": "x", "n": 1}, "referral": None, "labelled": None}
    alone = SitePictures(PICTURES.training, PICTURES.site)
    assert len(built(nothing, alone).sources) == site_page.MAX_PICTURES + 7


def test_a_site_like_the_training_images_is_said_to_be():
    about = copy.deepcopy(ABOUT)
    for found in (*about["distance"]["measures"], *about["distance"]["shares"]):
        found["state"] = "like"
    assert "within the quartiles of the training images" in built(about).text


def test_an_accuracy_that_is_hardly_known_is_said_to_be():
    about = copy.deepcopy(ABOUT)
    about["accuracy_estimate"]["after"] |= {"low": 0.4, "is_vague": True}
    assert "the accuracy is hardly known" in built(about).text
    assert "the accuracy is hardly known" not in built().text


def test_an_estimate_from_images_unlike_the_sites_is_not_presented_as_known():
    about = copy.deepcopy(ABOUT)
    about["accuracy_estimate"]["after"] |= {"unlike": 0.86, "is_extrapolated": True}
    text = built(about).text
    assert "How many answers are right at this site is not known." in text
    assert "Do not rely on the estimate: 86.0 % of the images are unlike" in text
    assert "of the answers to be right" not in text
    assert "Do not rely on the estimate" not in built().text


def test_it_links_to_the_report_of_the_run(tmp_path):
    assert "index.html" not in built().sources
    path = site_page.write(tmp_path, ABOUT, PICTURES)
    assert path == tmp_path / "report" / "site.html"
    assert "index.html" not in Page(path.read_text("utf-8")).sources
    (tmp_path / "report" / "index.html").write_text("the report")
    site_page.write(tmp_path, ABOUT, PICTURES)
    assert "index.html" in Page(path.read_text("utf-8")).sources
