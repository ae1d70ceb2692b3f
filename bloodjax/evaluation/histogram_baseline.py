"""The colour-histogram baseline, without a network. The one door to scikit-learn.

Stained cells differ in colour, so counting colours alone goes a long way. A network's accuracy says
little before it is held against that baseline's.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float32, Int, UInt8
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from bloodjax.data import lazy
from bloodjax.data.lazy import LazyImages

BINS = 16
# Images that the baseline is fitted to at most; more would hardly change 49 numbers a class.
MAX_IMAGES = 20_000
IMAGES_AT_ONCE = 64
SMALLEST_SCALE = 1e-3


def colour_histogram(
    images: UInt8[np.ndarray, "n h w 3"] | LazyImages,
) -> Float32[np.ndarray, "n 48"]:
    """Share of the pixels in each of 16 equal bins of red, then of green, then of blue."""
    n, height, width, channels = images.shape
    counts = np.empty((n, channels * BINS), np.float32)
    channel_offset = np.arange(channels) * BINS
    for start in range(0, n, IMAGES_AT_ONCE):
        chunk = images[start : start + IMAGES_AT_ONCE]
        image_offset = np.arange(len(chunk))[:, None, None, None] * channels * BINS
        index = chunk // (256 // BINS) + (image_offset + channel_offset)
        size = len(chunk) * channels * BINS
        counts[start : start + len(chunk)] = np.bincount(index.ravel(), minlength=size).reshape(
            len(chunk), -1
        )
    return counts / np.float32(height * width)


@dataclasses.dataclass(frozen=True)
class HistogramBaseline:
    """Logistic regression on standardised colour histograms, as plain arrays.

    Attributes:
      mean: of each bin over the training images.
      scale: standard deviation of each bin, at least 0.001: a bin all but empty in training must
        not outvote the others when another stain fills it.
      weights: regression coefficients on (histogram - mean) / scale.
      bias: intercept of each class, so low for a class without training images that its
        probability is 0.
    """

    mean: Float32[np.ndarray, " 48"]
    scale: Float32[np.ndarray, " 48"]
    weights: Float32[np.ndarray, "48 classes"]
    bias: Float32[np.ndarray, " classes"]

    @classmethod
    def fit(
        cls,
        images: UInt8[np.ndarray, "n h w 3"] | LazyImages,
        labels: Int[np.ndarray, " n"],
        num_classes: int,
    ) -> HistogramBaseline:
        """The regression on `images`, or on 20,000 drawn from them, where there are more.

        Raises:
          ValueError: with fewer than two classes among `labels`.
        """
        if len(images) > MAX_IMAGES:
            drawn = np.random.default_rng(0).choice(len(images), MAX_IMAGES, replace=False)
            chosen = np.sort(drawn)
            images, labels = lazy.take(images, chosen), labels[chosen]
        histogram = colour_histogram(images)
        mean = histogram.mean(axis=0)
        scale = np.maximum(histogram.std(axis=0), SMALLEST_SCALE)
        # Matrices this small cost more to share between threads than to multiply.
        with threadpool_limits(1):
            model = LogisticRegression(max_iter=1000).fit((histogram - mean) / scale, labels)
        weights = np.zeros((histogram.shape[1], num_classes), np.float32)
        bias = np.full(num_classes, -1e4, np.float32)
        if len(model.classes_) == 2:  # scikit-learn keeps the second class's logit alone
            first, second = model.classes_
            bias[first] = 0
            weights[:, second], bias[second] = model.coef_[0], model.intercept_[0]
        else:
            weights[:, model.classes_], bias[model.classes_] = model.coef_.T, model.intercept_
        return cls(mean, scale, weights, bias)

    def predict(
        self, images: UInt8[np.ndarray, "n h w 3"] | LazyImages
    ) -> Float32[np.ndarray, "n classes"]:
        """Probabilities of the classes; rows sum to 1."""
        histogram = (colour_histogram(images) - self.mean) / self.scale
        return softmax(histogram @ self.weights + self.bias, axis=1)

    def to_dict(self) -> dict[str, list]:
        """Fields as nested lists, ready for JSON."""
        return {field: values.tolist() for field, values in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, list]) -> HistogramBaseline:
        """The baseline that `to_dict` wrote, bit for bit."""
        return cls(**{field: np.asarray(values, np.float32) for field, values in fields.items()})
