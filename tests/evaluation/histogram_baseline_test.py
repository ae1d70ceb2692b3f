import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bloodjax.data.lazy import LazyImages
from bloodjax.evaluation import histogram_baseline

# Class counts of BloodMNIST's training split: basophil, eosinophil, erythroblast, ig,
# lymphocyte, monocyte, neutrophil, platelet.


def _tinted(rng: np.random.Generator, labels: np.ndarray, size: int = 12) -> np.ndarray:
    """Noise around a colour that depends on the label."""
    colours = np.array([[200, 80, 80], [80, 200, 80], [80, 80, 200]])
    noise = rng.normal(0, 60, (len(labels), size, size, 3))
    return np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8)


def _read(path, every: int) -> tuple[np.ndarray, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[::every]
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    _, labels = np.unique([name.split("/")[-2] for name in names], return_inverse=True)
    return np.stack(images), labels


def test_colour_histogram_equals_numpy():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (histogram_baseline.IMAGES_AT_ONCE + 3, 7, 9, 3), np.uint8)
    images[0] = 255
    expected = [
        np.concatenate(
            [np.histogram(image[..., c], bins=16, range=(0, 256))[0] / 63 for c in range(3)]
        )
        for image in images
    ]
    np.testing.assert_allclose(histogram_baseline.colour_histogram(images), expected, rtol=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_baseline_equals_scikit_learn(num_classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, 200)
    images = _tinted(rng, labels)
    baseline = histogram_baseline.HistogramBaseline.fit(images, labels, num_classes)

    histogram = histogram_baseline.colour_histogram(images).astype(np.float64)
    assert histogram.std(axis=0).min() > histogram_baseline.SMALLEST_SCALE
    reference = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    reference.fit(histogram, labels)
    # The solver stops within its tolerance, and the inputs are rounded differently.
    np.testing.assert_allclose(
        baseline.predict(images), reference.predict_proba(histogram), atol=2e-3
    )


def test_baseline_stays_sober_about_colours_it_never_saw():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    images = np.clip(_tinted(rng, labels, size=48), 16, 255)
    images[0, 0, 0] = 0  # The only dark pixel.
    baseline = histogram_baseline.HistogramBaseline.fit(images, labels, 2)
    darker = images.copy()
    darker[:, 0] = 0  # Two per cent of the pixels.
    moved = np.abs(baseline.predict(darker) - baseline.predict(images))
    assert moved.max() < 0.1


def test_baseline_gives_no_probability_to_a_class_it_never_saw():
    rng = np.random.default_rng(0)
    labels = np.array([0, 2] * 20)
    images = _tinted(rng, labels)
    probabilities = histogram_baseline.HistogramBaseline.fit(images, labels, 4).predict(images)
    assert probabilities.shape == (40, 4)
    assert not probabilities[:, [1, 3]].any()
    assert (probabilities.argmax(axis=1) == labels).all()


def test_baseline_needs_two_classes():
    with pytest.raises(ValueError, match="class"):
        histogram_baseline.HistogramBaseline.fit(
            np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, int), 3
        )


def test_baseline_through_json_is_the_same():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    images = _tinted(rng, labels)
    baseline = histogram_baseline.HistogramBaseline.fit(images, labels, 3)
    again = histogram_baseline.HistogramBaseline.from_dict(
        json.loads(json.dumps(baseline.to_dict()))
    )
    np.testing.assert_array_equal(again.predict(images), baseline.predict(images))


def test_baseline_on_real_cells(cells_dir):
    baseline = histogram_baseline.HistogramBaseline.fit(
        *_read(cells_dir / "pbc96_train.zip", every=3), 8
    )
    images, labels = _read(cells_dir / "pbc96_val.zip", every=2)
    accuracy = (baseline.predict(images).argmax(axis=1) == labels).mean()
    assert 0.88 < accuracy < 0.96


def test_baseline_of_many_images_is_that_of_some_of_them(monkeypatch):
    monkeypatch.setattr(histogram_baseline, "MAX_IMAGES", 30)
    monkeypatch.setattr(histogram_baseline, "IMAGES_AT_ONCE", 7)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 88)
    images = _tinted(rng, labels)
    asked = []

    def load(places):
        asked.append(places)
        return images[places]

    unread = LazyImages(load, np.arange(88), images.shape[1])
    found = histogram_baseline.HistogramBaseline.fit(unread, labels, 3)
    read = [*asked]
    assert max(map(len, read)) == 7
    some = np.unique(np.concatenate(read))
    assert len(some) == 30
    expected = histogram_baseline.HistogramBaseline.fit(images[some], labels[some], 3)
    np.testing.assert_array_equal(found.predict(unread), expected.predict(images))
