"""Colour-histogram baseline: logistic regression. The only module that imports scikit-learn.

Stained cells differ in colour, so a classifier of colours alone can be accurate. A network's
accuracy is meaningful only in comparison with this baseline.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy
from jaxtyping import Float32, Int, UInt8
from threadpoolctl import threadpool_limits

from bloodjax.data import lazy
from bloodjax.data.lazy import LazyImages

BINS = 16
# Most images that the baseline is fitted to. More would hardly change its 49 numbers per class.
MAX_IMAGES = 20_000
IMAGES_AT_ONCE = 64
SMALLEST_SCALE = 1e-3


def colour_histogram(
    images: UInt8[np.ndarray, "n h w 3"] | LazyImages,
) -> Float32[np.ndarray, "n 48"]:
    """Share of the pixels in each of 16 equal bins of red, of green and of blue, in this order."""
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
      mean: Mean of each bin over the training images.
      scale: Standard deviation of each bin, at least 0.001, so that a bin that is almost empty in
        training does not dominate if another stain fills it.
      weights: Regression coefficients for (histogram - mean) / scale.
      bias: Intercept of each class; for a class without training images it is so low that the
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
        """Fits the regression to `images`, or to a random sample of 20,000 if there are more.

        Args:
          images: RGB images, all of one size.
          labels: True class indices.
          num_classes: Number of classes.

        Raises:
          ValueError: `labels` has fewer than two classes.
        """
        # The import takes a quarter of a second, which `load` need not spend.
        from sklearn.linear_model import LogisticRegression

        if len(images) > MAX_IMAGES:
            sample = np.random.default_rng(0).choice(len(images), MAX_IMAGES, replace=False)
            sample.sort()
            images, labels = lazy.take(images, sample), labels[sample]
        histogram = colour_histogram(images)
        mean = histogram.mean(axis=0)
        scale = np.maximum(histogram.std(axis=0), SMALLEST_SCALE)
        # Threads would cost more time than they save on matrices of this size.
        with threadpool_limits(1):
            model = LogisticRegression(max_iter=1000).fit((histogram - mean) / scale, labels)
        weights = np.zeros((histogram.shape[1], num_classes), np.float32)
        bias = np.full(num_classes, -1e4, np.float32)
        if len(model.classes_) == 2:  # scikit-learn has only the second class's logit.
            first, second = model.classes_
            bias[first] = 0
            weights[:, second], bias[second] = model.coef_[0], model.intercept_[0]
        else:
            weights[:, model.classes_], bias[model.classes_] = model.coef_.T, model.intercept_
        return cls(mean, scale, weights, bias)

    def predict(
        self, images: UInt8[np.ndarray, "n h w 3"] | LazyImages
    ) -> Float32[np.ndarray, "n classes"]:
        """Class probabilities; rows sum to 1."""
        histogram = (colour_histogram(images) - self.mean) / self.scale
        return scipy.special.softmax(histogram @ self.weights + self.bias, axis=1)

    def to_dict(self) -> dict[str, list]:
        """The fields as nested lists, for JSON."""
        return {field: values.tolist() for field, values in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, list]) -> HistogramBaseline:
        """Restores a baseline from the result of `to_dict`, bit for bit."""
        return cls(**{field: np.asarray(values, np.float32) for field, values in fields.items()})
