import types

import numpy as np

from benchmarks import rejection
from bloodjax import config as config_lib
from bloodjax.corruptions import unfamiliar
from bloodjax.data.synthetic import render
from bloodjax.metrics import novelty


def describe(images):
    """Quantiles of an image's colours stand for features, logits and appearance."""
    pixels = np.sort(np.asarray(images).reshape(len(images), -1, 3), axis=1)
    features = np.float32(pixels[:, :: pixels.shape[1] // 16].reshape(len(images), -1)) / 255
    return novelty.Description(features, features[:, : len(render.CLASSES)], features)


def test_each_method_has_a_detector():
    cells = render.render_dataset(200, 16, seed=1)
    model = types.SimpleNamespace(
        config=config_lib.validate({}),
        classes=render.CLASSES,
        describe_fully=describe,
        detector=None,
    )
    train, validation = cells.take(np.arange(100)), cells.take(np.arange(100, 200))
    found = rejection.detectors(model, train, validation)
    assert {name: detector.method for name, detector in found.items()} == {
        name: name for name in novelty.METHODS
    }
    # One image of a hundred is the share that the config asks for.
    usual = rejection.rejected(found["mahalanobis"], describe(validation.images))
    assert usual.sum() == 1
    noise = unfamiliar.make("noise", np.asarray(validation.images), 0)
    assert rejection.rejected(found["mahalanobis"], describe(noise)).mean() > 0.5


def test_answers_of_the_network_alone_are_compared_with_the_labels():
    cells = render.render_dataset(8, 16, seed=1)
    logits = np.eye(len(render.CLASSES), dtype=np.float32)[cells.labels]
    logits[2] = np.roll(logits[2], 1)
    found = rejection.wrong(cells, novelty.Description(logits, logits, logits))
    assert found.tolist() == [i == 2 for i in range(8)]


def test_referred_wrong_answers_are_counted():
    found = rejection.referred(np.array([True, True, False]), np.array([True, False, True]))
    assert found == "2 of 3 answers are wrong, of which 1 are referred"


def test_a_row_has_shares_and_numbers():
    row = rejection.line("text", {"knn": np.array([True, False]), "energy": np.zeros(3, bool)})
    assert row == "text | 50.0% (1 of 2) | 0.0% (0 of 3)"
