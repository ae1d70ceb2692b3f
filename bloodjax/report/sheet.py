"""A sheet of images as training will see them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bloodjax.augment.policy import parse
from bloodjax.config import Config
from bloodjax.data import sources
from bloodjax.data.batches import Batch
from bloodjax.report import plots
from bloodjax.training.inputs import prepare_batch

# Of a mixed image's label, the parts worth a mention.
_LEAST_PART = 0.005


def draw(config: Config, columns: int) -> bytes:
    """A PNG with a row for each class: its first image, and that image in as many steps.

    Args:
      config: a run's. Its training source is read, without an audit.
      columns: steps to show.

    Raises:
      UserError: the source cannot be read.
    """
    data = sources.load(
        config.data.train,
        config.data.image_size,
        bad_images=config.data.bad_images,
        class_names=config.data.classes,
        seed=config.seed,
    )
    classes = range(len(data.classes))
    shown = [int(np.flatnonzero(data.labels == c)[0]) for c in classes if c in data.labels]
    images, labels = data.images[shown], data.labels[shown]
    seen = [_seen(config, step, images, labels, len(classes)) for step in range(columns)]
    rows = [[images[i], *(pictures[i] for pictures, _ in seen)] for i in range(len(shown))]
    titles = [
        [data.classes[labels[i]], *(_label(targets[i], data.classes) for _, targets in seen)]
        for i in range(len(shown))
    ]
    return plots.image_sheet(rows, titles)


def _seen(config: Config, step: int, images, labels, classes: int):
    """The images of these labels as a step has them, and their targets."""
    # Mixing takes images in pairs.
    fill = [(0, len(images) % 2)]
    images = np.pad(images, fill + [(0, 0)] * 3, mode="edge")
    labels = np.pad(labels, fill, mode="edge")
    batch = Batch(jnp.asarray(images), jnp.asarray(labels), jnp.ones(len(labels), bool))
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    see = jax.jit(prepare_batch, static_argnums=0, static_argnames="classes")
    found = see(parse(config.augment), key, batch, classes=classes)
    return np.asarray(jnp.round(found.image)).astype(np.uint8), np.asarray(found.targets)


def _label(targets: np.ndarray, classes: tuple[str, ...]) -> str:
    """A target in words: each class with its part, the largest first."""
    parts = [c for c in np.argsort(-targets, kind="stable") if targets[c] > _LEAST_PART]
    if len(parts) == 1:
        return ""
    return "\n".join(f"{targets[c]:.2f} {classes[c]}" for c in parts)
