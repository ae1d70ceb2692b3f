"""A teacher that sees the images of each training step as the student does.

Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2022,
arXiv:2106.05237, call this consistent teaching. A step costs a forward pass of the teacher more.
`distillation` has the cheap form, in which the teacher sees each image once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num, PyTree

from bloodjax.augment import tta
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write, read_json
from bloodjax.metrics.calibration import Calibration
from bloodjax.models.head import Network
from bloodjax.training.step_input import normalise

FILE = "teacher.json"
# Smallest probability whose logarithm is taken.
_LEAST = 1e-12


@dataclasses.dataclass(frozen=True)
class TeacherNetwork:
    """One network of a teacher.

    Attributes:
      model: The network.
      mean: Per-channel mean in 0..1 that its input is normalised with.
      std: Per-channel standard deviation in 0..1.
      size: Side of its input in pixels.
      calibration: Calibration of its probabilities without test-time views.
      order: Its index of each class of the student.
    """

    model: Network
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    calibration: Calibration
    order: tuple[int, ...]


@flax.struct.dataclass
class WithTeacher:
    """The class weights of a training step, with the variables of an online teacher.

    Attributes:
      class_weights: float32 [classes], per-class weight in the loss.
      variables: Variables of each of the teacher's networks.
    """

    # As a pytree, each field may also hold a shape, a sharding or a stack of copies.
    class_weights: PyTree
    variables: PyTree


@jax.named_scope("teacher")
def probabilities(
    networks: Sequence[TeacherNetwork],
    variables: Sequence[PyTree],
    images: Num[Array, "batch height width 3"],
    temperature: float,
) -> Float[Array, "batch classes"]:
    """The teacher's mean probabilities for images, softened by a temperature.

    Args:
      networks: The teacher's networks.
      variables: Variables of each network.
      images: Images in 0..255. A network of another input size gets them resized.
      temperature: Divides the logarithms of the mean probabilities.
    """
    total = 0.0
    for network, weights in zip(networks, variables, strict=True):
        seen = images
        if images.shape[1] != network.size:
            shape = (len(images), network.size, network.size, images.shape[-1])
            resized = jax.image.resize(images.astype(jnp.float32), shape, "cubic")
            seen = jnp.clip(resized, 0.0, 255.0)
        logits = network.model.apply(weights, normalise(seen, network.mean, network.std))
        calibrated = tta.calibrate(jax.nn.log_softmax(logits), network.calibration)
        total = total + calibrated[:, np.array(network.order)]
    mean = jnp.maximum(total / len(networks), _LEAST)
    return jax.lax.stop_gradient(jax.nn.softmax(jnp.log(mean) / temperature))


def check_same(workdir: pathlib.Path, variables: Sequence[PyTree], name: str, fresh: bool) -> None:
    """Records the teacher of a new run, or checks that a resumed run has the same.

    Args:
      workdir: Folder of the run.
      variables: Variables of each of the teacher's networks.
      name: Name of the teacher, for the message.
      fresh: Whether the run is new.

    Raises:
      UserError: The teacher has other weights than when the run began.
    """
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    path = workdir / FILE
    if fresh:
        atomic_write(path, json.dumps({"weights": f"sha256:{digest.hexdigest()}"}, indent=2) + "\n")
        return
    stored = read_json(path, "the record of a run's teacher", lambda content: content["weights"])
    if stored != f"sha256:{digest.hexdigest()}":
        raise UserError(
            f"{name}: has other weights than when the run in {workdir} began, expected the same "
            "teacher"
        )
