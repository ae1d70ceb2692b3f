"""The function that is exported: uint8 images in, calibrated class probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from bloodjax.augment import tta, views
from bloodjax.augment.tta import TTAConfig
from bloodjax.evaluation.site import Site
from bloodjax.exporting.bundle import view_names
from bloodjax.metrics.calibration import NONE, Calibration
from bloodjax.models.head import Network
from bloodjax.training.step_input import normalise

# Images of the network's size -> probabilities, and features if they were asked for.
Exported = Callable[[PyTree, UInt8[Array, "batch size size 3"]], tuple[Array, ...]]
PROBABILITIES, FEATURES = "probabilities", "features"
# Operations of the site, in the names of an exported program's operations.
SITE_SCOPE, CALIBRATION_SCOPE = "site", "calibration"
_PLAIN = TTAConfig()
# The smallest normal float32, as in `metrics.calibration.logarithms`.
_TINY = np.finfo(np.float32).tiny


def exported(
    model: Network,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    chosen: TTAConfig = _PLAIN,
    calibration: Calibration = NONE,
    site: Site | None = None,
    classes: Sequence[str] = (),
    features: bool = False,
) -> Exported:
    """The function of variables and images that an exported file computes.

    Args:
      model: The network, with float32 as its compute dtype.
      mean: Per-channel mean of images in 0..1.
      std: Per-channel standard deviation of images in 0..1.
      chosen: The views to average over.
      calibration: Applied to the average.
      site: The site at which the file is used, or None: its appearance is applied to the images,
        and the probabilities are adjusted to it after calibration.
      classes: All class names of the run in label order, which a site needs.
      features: Whether to return the features of the unmodified image as well, in float32.
    """
    names = view_names(chosen)
    functions = views.named(chosen.views)
    plain = [views.IMAGE] if features and views.IMAGE not in names else []

    def function(variables, images):
        if site and site.appearance:
            with jax.named_scope(SITE_SCOPE):
                images = site.appearance.apply(images)
        # The views are one batch, so that the network is there once.
        seen = [functions[name](images) for name in names + plain]
        seen = jnp.concatenate(seen) if len(seen) > 1 else seen[0]
        inputs = normalise(seen, mean, std)
        described = model.apply(variables, inputs, method="features")
        logits = model.apply(variables, described, method="classify")
        logits = logits.reshape(len(names + plain), images.shape[0], -1)
        probabilities = calibrated(tta.average(logits[: len(names)], chosen), calibration)
        result = (adjusted(probabilities, site, classes),)
        if not features:
            return result
        described = described.reshape(len(names + plain), images.shape[0], -1)
        of_image = described[(names + plain).index(views.IMAGE)]
        return (*result, of_image.astype(jnp.float32))

    return function


@jax.named_scope(CALIBRATION_SCOPE)
def calibrated(
    probabilities: Float[Array, "batch classes"], calibration: Calibration
) -> Float[Array, "batch classes"]:
    """The result of `Calibration.apply`, in float32."""
    if calibration.method == "none":
        return probabilities
    return tta.calibrate(jnp.log(jnp.maximum(probabilities, _TINY)), calibration)


@jax.named_scope(SITE_SCOPE)
def adjusted(
    probabilities: Float[Array, "batch classes"], site: Site | None, classes: Sequence[str]
) -> Float[Array, "batch classes"]:
    """The result of `Site.adjust`, in float32."""
    weights = site.log_weights(classes) if site else None
    if weights is None:
        return probabilities
    logits = jnp.log(jnp.maximum(probabilities, _TINY)) + jnp.asarray(weights, jnp.float32)[None]
    return jax.nn.softmax(logits, axis=-1)
