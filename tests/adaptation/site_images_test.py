import pathlib

import numpy as np
import pytest
from PIL import Image

import bloodjax
from bloodjax.adaptation import site_images
from bloodjax.adaptation.site_images import SiteImages
from bloodjax.data import images as images_lib
from bloodjax.data import sources
from bloodjax.errors import UserError
from bloodjax.evaluation.site import Site

SIDES = (40, 64, 50)


@pytest.fixture
def folder(tmp_path):
    for i, side in enumerate(SIDES):
        square = np.full((side, side + i, 3), 200, np.uint8)
        square[side // 2 - 5 : side // 2 + 5, side // 2 - 5 : side // 2 + 5] = 30
        (tmp_path / f"{i}.png").write_bytes(images_lib.encode_png(square))
    return str(tmp_path)


def test_images_are_read_as_the_site_says(trained, folder):
    model = bloodjax.load(trained)
    images = SiteImages.read(model, folder)
    np.testing.assert_array_equal(images.sides, SIDES)
    size = model.config.data.image_size
    assert images.measured().shape == (3, size, size, 3)
    assert images.again(model) is images
    model.site = Site(fit="80px")
    framed = images.again(model).measured()
    dark = (framed[..., 0] < 115).sum(axis=(1, 2))
    assert (np.abs(dark - (10 * size / 80) ** 2) <= 9).all(), "the spots are of one size"


def test_labelled_images_are_of_classes_that_can_occur_and_apart(trained):
    model = bloodjax.load(trained)
    labelled = site_images.read_labelled(model, "synthetic:16")
    assert set(labelled.labels) == set(range(8))
    others = sources.load_images("synthetic:16", 32, seed=9)
    site_images.check_apart(labelled, others, "few", "all")
    with pytest.raises(UserError, match="--labelled=few: 16 images of it are also in --data=all"):
        site_images.check_apart(labelled, labelled, "few", "all")
    model.site = Site(classes=model.classes[:6])
    with pytest.raises(UserError, match="--labelled=synthetic:16: has images of "):
        site_images.read_labelled(model, "synthetic:16")


def test_labelled_images_have_the_scale_of_the_others(trained, tmp_path):
    model = bloodjax.load(trained)
    rng = np.random.default_rng(0)
    brightest = {"site": 4000, "few": 900}
    for name, most in brightest.items():
        folder = tmp_path / name / model.classes[0]
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, most, (40, 40), np.uint16)
            Image.fromarray(pixels).save(folder / f"{i}.tif")
    site, few = (str(tmp_path / name) for name in brightest)
    alone = site_images.read_labelled(model, few)
    images, labelled = site_images.read_with_labelled(model, site, few)
    assert images.reading["bits"] == "12"
    assert alone.reading.tally.scale == "10"
    ratio = np.mean(alone.images[:]) / np.mean(labelled.images[:])
    assert 3.5 < ratio < 4.5
    again = site_images.read_labelled(model, few, images.reading)
    np.testing.assert_array_equal(again.images[:], labelled.images[:])
    Image.open(pathlib.Path(few) / model.classes[0] / "0.tif").save(pathlib.Path(site) / "same.tif")
    with pytest.raises(UserError, match="1 image of it are also in --data"):
        site_images.read_with_labelled(model, site, few)


def test_a_sample_is_the_same_each_time():
    np.testing.assert_array_equal(site_images.sample(3), [0, 1, 2])
    found = site_images.sample(5000)
    assert len(found) == 2000
    assert (np.diff(found) > 0).all()
    np.testing.assert_array_equal(found, site_images.sample(5000))
