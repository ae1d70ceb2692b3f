from typing import ClassVar

import numpy as np
import pytest

from bloodjax.data import images
from bloodjax.evaluation import answers
from bloodjax.evaluation.classifier import Classifier
from bloodjax.evaluation.referral import Referral
from bloodjax.serving.limits import Limits

CLASSES = ("red", "green", "<b>blue</b>")


class ColourClassifier(Classifier):
    """Classifies images by their mean colour, in place of a network that has to be compiled."""

    tta, selected, baseline, step, site = "none", None, None, 7, None
    referral, detector = Referral(0.01, 0.5, 99), object()
    calibrations: ClassVar = {}

    def __init__(self, config):
        self.config, self.classes = config, CLASSES
        self.described = 0

    def answer(self, images, tta=None):
        features, _ = self._colours(images)
        probabilities = (features / features.sum(axis=1, keepdims=True)).astype(np.float32)
        return answers.judge(probabilities, threshold=0.5, unlike=features.max(axis=1) < 9)

    def describe(self, images):
        self.described += len(images)
        return self._colours(images)

    def explain(self, images, classes=None, method="layercam"):
        if classes is None:
            classes = self.answer(images).predicted
        maps = [
            np.full(image.shape[:2], c / 2, np.float32)
            for image, c in zip(images, classes, strict=True)
        ]
        return maps, classes

    def _colours(self, images):
        means = np.stack([np.asarray(image, np.float32).mean(axis=(0, 1)) for image in images])
        return means + 1, np.log(means + 1)


@pytest.fixture
def colours(make_config):
    return ColourClassifier(make_config())


@pytest.fixture(scope="session")
def plain():
    """An encoded image of one colour and size."""

    def encode(red, green, blue, size=(40, 40)):
        return images.encode_png(np.full((*size, 3), (red, green, blue), np.uint8))

    return encode


@pytest.fixture
def limits():
    return Limits(file_bytes=20_000, files=5, pixels=10_000, seconds=20.0)
