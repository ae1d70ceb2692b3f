import jax.numpy as jnp
import numpy as np

from bloodjax.training.step_input import normalise


def test_normalise_takes_bytes_to_the_scale_of_the_weights():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    images = np.random.default_rng(3).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    expected = (images / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalise(jnp.asarray(images), mean, std), expected, atol=1e-5)
