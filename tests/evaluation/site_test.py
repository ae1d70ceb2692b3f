import dataclasses
import json

import numpy as np
import pytest

from bloodjax.data import lazy
from bloodjax.data.lazy import LazyImages
from bloodjax.errors import UserError
from bloodjax.evaluation import site as site_lib
from bloodjax.evaluation.appearance import Appearance
from bloodjax.evaluation.site import Site

NAMES = ("basophil", "ig", "Monocyte", "neutrophil")
PROBABILITIES = np.array([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]], np.float32)


# Halves the light.
DARKER = Appearance((254.0, 254.0, 254.0), (127.0, 127.0, 127.0))


def test_other_classes_get_nothing_and_the_rest_keeps_its_proportions():
    found = Site(("ig", "neutrophil")).adjust(PROBABILITIES, NAMES)
    np.testing.assert_allclose(found, [[0, 1 / 3, 0, 2 / 3], [0, 0.5, 0, 0.5]], atol=1e-6)
    assert found.dtype == np.float32
    assert (found[:, [0, 2]] == 0).all()


def test_shares_are_corrected_by_bayes_rule():
    training, there = np.array([0.25, 0.25, 0.25, 0.25]), np.array([0.1, 0.2, 0.3, 0.4])
    found = Site(share_ratio=tuple(there / training)).adjust(PROBABILITIES[None], NAMES)
    expected = PROBABILITIES * there
    np.testing.assert_allclose(found[0], expected / expected.sum(1, keepdims=True), rtol=1e-6)
    both = Site(("ig", "neutrophil"), tuple(there / training)).adjust(PROBABILITIES, NAMES)
    np.testing.assert_allclose(both[0], [0, 0.04 / 0.2, 0, 0.16 / 0.2], rtol=1e-6)


def test_an_image_of_which_no_listed_class_is_probable_has_probabilities():
    certain = np.array([[1, 0, 0, 0]], np.float32)
    found = Site(("ig", "Monocyte")).adjust(certain, NAMES)
    np.testing.assert_allclose(found, [[0, 0.5, 0.5, 0]])


def test_a_site_of_which_nothing_is_known_changes_nothing():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    assert Site().adjust(PROBABILITIES, NAMES) is PROBABILITIES
    assert Site().prepare(images) is images


@pytest.mark.parametrize("n", [0, 1, 3, lazy.AT_ONCE + 5])
def test_every_image_gets_the_appearance(n):
    images = np.random.default_rng(0).integers(0, 256, (n, 2, 2, 3), np.uint8)
    known, expected = Site(appearance=DARKER), np.rint(np.maximum(images, 1) / 2)
    np.testing.assert_allclose(known.prepare(images), expected, atol=1)
    assert known.prepare(images).dtype == np.uint8
    unread = LazyImages(lambda indices: images[indices], np.arange(n), 2)
    prepared = known.prepare(unread)
    assert isinstance(prepared, LazyImages)
    np.testing.assert_array_equal(prepared[:], known.prepare(images))


@pytest.mark.parametrize("zoom", [0.5, 1.0, 2.0])
def test_maps_are_placed_where_the_image_was(zoom):
    known = Site(appearance=Appearance(zoom=zoom))
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, 11:14, 17:22] = 200
    shown = known.prepare(image)[..., 0] / 255  # a map of the prepared image
    placed = known.place_back(shown.astype(np.float32))[0]
    where = np.argwhere(placed > 0.4 * placed.max()).mean(axis=0)
    np.testing.assert_allclose(where, [12, 19], atol=0.6)
    assert placed.shape == (32, 32)
    everywhere = known.place_back(np.ones((1, 32, 32), np.float32))[0]
    assert (everywhere[16, 16], everywhere[0, 0]) == (1, 0 if zoom > 1 else 1)


def test_a_file_keeps_it(tmp_path):
    known = Site(("ig",), (0.5, 1.0, 2.0, 1.5), DARKER)
    assert site_lib.load(tmp_path) is None
    known.write(tmp_path)
    assert site_lib.load(tmp_path, NAMES) == known


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": ["platelet"]}, "classes platelet, not of basophil, ig"),
        ({"classes": ["ig", "ig"]}, "classes ig, ig, not of"),
        ({"share_ratio": [1.0, 2.0]}, "2 share ratios for 4 classes"),
        ({"share_ratio": [1.0, 2.0, 0.0, 1.0]}, "expected numbers above 0"),
        ({"share_ratio": [1.0, 2.0, float("nan"), 1.0]}, "expected numbers above 0"),
        ({"appearance": {"no": "appearance"}}, "is damaged"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, change, said):
    content = Site(("ig",)).to_dict() | change
    (tmp_path / site_lib.FILE).write_text(json.dumps(content))
    with pytest.raises(UserError, match=said) as error:
        site_lib.load(tmp_path, NAMES)
    assert str(error.value).startswith(f"{tmp_path / site_lib.FILE}: is damaged (")


@pytest.mark.parametrize(
    "given", ["neutrophil, monocyte", "MONOCYTE,neutrophil", ["neutrophil", "Monocyte "]]
)
def test_names_may_differ_in_form_and_come_in_the_run_s_order(given):
    assert site_lib.parse_classes(given, NAMES, "--classes") == ("Monocyte", "neutrophil")


def test_a_name_with_a_comma_is_quoted():
    assert site_lib.parse_classes('"a, b",c', ("c", "a, b", "d"), "--classes") == ("c", "a, b")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "--classes is empty, expected some of basophil, ig, Monocyte, neutrophil"),
        ([], "--classes is empty, expected some of basophil, ig, Monocyte, neutrophil"),
        ("ig,,neutrophil", "--classes=ig,,neutrophil: a name is empty, expected some of basophil,"),
        ("neutrophils", "--classes=neutrophils: 'neutrophils' is no class; did you mean neutro"),
        ("x", "--classes=x: 'x' is no class; expected one of basophil, ig"),
        ("ig,monocyte,IG", "--classes=ig,monocyte,IG: ig is listed twice, expected once"),
    ],
)
def test_a_wrong_list_is_one_line(given, said):
    with pytest.raises(UserError) as error:
        site_lib.parse_classes(given, NAMES, "--classes")
    assert str(error.value).startswith(said)


def test_another_list_keeps_what_else_is_known():
    known = Site(("ig",), (1.0, 2.0, 3.0, 4.0), DARKER)
    found = site_lib.restricted(known, ("basophil", "ig"))
    assert found == dataclasses.replace(known, classes=("basophil", "ig"))
    assert site_lib.restricted(None, ("ig",)) == Site(("ig",))
