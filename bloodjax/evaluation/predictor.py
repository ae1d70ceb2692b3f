"""A network with its weights as functions of images on the host."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, PyTree

from bloodjax.augment.tta import TTAConfig
from bloodjax.data.lazy import Images
from bloodjax.training.executor import JitExecutor, PmapExecutor


class Predictor:
    """Computes probabilities, features and logits of images; several threads may use it at once.

    Attributes:
      step_config: The network and the normalisation of its input.
      variables: The network's variables, on the devices.
    """

    def __init__(self, executor: JitExecutor | PmapExecutor, variables: PyTree):
        """Puts the variables on the devices; compiles nothing yet.

        Args:
          executor: Compiles the steps.
          variables: The network's variables, on the host or on a device.
        """
        self.step_config = executor.step_config
        self._executor, self._placed = executor, executor.shard_state(variables)

    @property
    def variables(self) -> PyTree:
        """The network's variables, on the devices."""
        return self._executor.unreplicate(self._placed)

    def predict(self, images: Images, views: TTAConfig) -> Float[np.ndarray, "n *answers classes"]:
        """Class probabilities of uint8 images [n, size, size, 3] of the network's size.

        Args:
          images: At least one image.
          views: The views; see `augment.tta.probabilities`.
        """
        return self._executor.predict(self._placed, images, views)

    def each_view(self, images: Images, views: str) -> Float[np.ndarray, "n views classes"]:
        """Class probabilities of at least one image in each view of the sets `views`."""
        return self._executor.each_view(self._placed, images, views)

    def describe(
        self, images: Images
    ) -> tuple[Float[np.ndarray, "n features"], Float[np.ndarray, "n classes"]]:
        """Features and logits of at least one unmodified image, in float32."""
        return self._executor.describe(self._placed, images)
