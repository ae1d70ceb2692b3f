"""The teacher of a run: its probabilities of the training images, computed once and kept.

Knowledge distillation (Hinton et al., "Distilling the knowledge in a neural network", 2015,
arXiv:1503.02531) with a fixed teacher: it sees each training image once, unmodified, and its
probabilities are mixed like labels where images are. Computed before the first step, they cost a
training step nothing. `online_teacher` has the other form, in which the teacher sees the images of
each step.

`teacher.npz` in the workdir has the probabilities. A resumed run reads them from there, so the
teacher need not exist any more, and the numbers are the same to the bit.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, PyTree

from bloodjax import config as config_lib
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.data import splits as splits_lib
from bloodjax.data.dataset import Dataset
from bloodjax.data.lazy import Images
from bloodjax.errors import UserError
from bloodjax.io.files import atomic_write
from bloodjax.training import online_teacher, saved_splits
from bloodjax.training.input_pipeline import Splits
from bloodjax.training.online_teacher import TeacherNetwork

FILE = "teacher.npz"


@runtime_checkable
class Teacher(Protocol):
    """Trained classifiers that a run learns from.

    Attributes:
      classes: Class names in label order.
      config: Config that says how the teacher reads images.
      runs: Folder of each of its runs -> the run's config.
    """

    classes: tuple[str, ...]
    config: Config
    runs: Mapping[pathlib.Path, Config]

    def predict(self, images: Images, tta: str) -> Float[np.ndarray, "n classes"]:
        """Class probabilities of images, of the mean of its runs."""
        ...

    def networks(
        self, order: Sequence[int]
    ) -> tuple[tuple[TeacherNetwork, ...], tuple[PyTree, ...]]:
        """Its networks and their variables; `order` is its index of each of the run's classes."""
        ...


def soft_targets(
    config: Config, splits: Splits, workdir: pathlib.Path, teacher: Teacher | None
) -> Float32[np.ndarray, "n classes"]:
    """The probabilities that a run learns from, at the temperature `config.distill.temperature`.

    Args:
      config: Config of the run.
      splits: Images of the run, which has written its `splits.json`.
      workdir: Folder of the run.
      teacher: The teacher, which predicts the training images; None to read what the run has
        stored.

    Returns:
      A distribution over the classes for each training image.

    Raises:
      UserError: The teacher has other classes, or was trained on test images of the run; or the
        stored probabilities are missing, damaged, or of other images.
    """
    path, classes = workdir / FILE, splits.train.classes
    pixels = splits_lib.load(workdir / saved_splits.SPLITS_FILE)["pixels"]["train"]
    if teacher is None:
        probabilities = _read(path, pixels, (len(splits.train), len(classes)))
    else:
        order = _class_order(config, teacher, classes)
        _check_independent(config, splits, workdir, teacher)
        console.log_info(
            f"the teacher {config.distill.workdir} predicts the "
            f"{console.counted(len(splits.train), 'training image')}"
        )
        images = splits.train.images
        if _reading(teacher.config) != _reading(config):
            images = _read_as(config, teacher.config, workdir, classes, "train").images
        probabilities = teacher.predict(images, config.distill.tta)[:, order].astype(np.float32)
        if not np.isfinite(probabilities).all():
            raise UserError(
                f"config.distill.workdir {config.distill.workdir}: predicts numbers that are not "
                "finite, expected probabilities"
            )
        _write(path, probabilities, pixels)
        agreement = np.mean(probabilities.argmax(axis=1) == splits.train.labels)
        console.log_info(
            f"the teacher agrees with {agreement:.2%} of the labels, at a mean confidence of "
            f"{probabilities.max(axis=1).mean():.3f}"
        )
    return soften(probabilities, config.distill.temperature)


def networks(
    config: Config, splits: Splits, workdir: pathlib.Path, teacher: Teacher, fresh: bool
) -> tuple[tuple[TeacherNetwork, ...], tuple[PyTree, ...]]:
    """The networks of an online teacher, and their variables.

    Args:
      config: Config of the run.
      splits: Images of the run.
      workdir: Folder of the run.
      teacher: The teacher.
      fresh: Whether the run is new. A resumed run must have the same teacher.

    Raises:
      UserError: The teacher has other classes, reads images in another way, was trained on test
        images of the run, or has other weights than when the run began.
    """
    order = _class_order(config, teacher, splits.train.classes)
    name = f"config.distill.workdir {config.distill.workdir}"
    for key in ("fit", "scale"):
        theirs, own = teacher.config.data[key], config.data[key]
        if theirs != own:
            raise UserError(
                f"{name}: has data.{key} {theirs!r}, expected that of the run, {own!r}, with "
                "config.distill.online"
            )
    if fresh:
        _check_independent(config, splits, workdir, teacher)
    found, variables = teacher.networks(order)
    online_teacher.check_same(workdir, variables, name, fresh)
    return found, variables


def soften(
    probabilities: Float[np.ndarray, "n classes"], temperature: float
) -> Float32[np.ndarray, "n classes"]:
    """The distributions whose logits are divided by a temperature; above 1 they are flatter."""
    powers = probabilities.astype(np.float64) ** (1 / temperature)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


def _class_order(config: Config, teacher: Teacher, classes: tuple[str, ...]) -> list[int]:
    """The teacher's index of each of the run's classes."""
    if set(teacher.classes) != set(classes):
        raise UserError(
            f"config.distill.workdir {config.distill.workdir}: has the classes "
            f"{', '.join(teacher.classes)}; expected those of {config.data.train}: "
            f"{', '.join(classes)}"
        )
    return [teacher.classes.index(name) for name in classes]


def _check_independent(
    config: Config, splits: Splits, workdir: pathlib.Path, teacher: Teacher
) -> None:
    """Checks that the teacher was trained on no image that the run is evaluated on.

    Raises:
      UserError: It was trained on test images, and `config.data.clean` is not "report".
    """
    runs = {
        folder: run
        for folder, run in teacher.runs.items()
        if (folder / saved_splits.SPLITS_FILE).is_file()
    }
    for name, dataset in splits.items():
        if name == "train":
            continue

        def read_again(other: Config, name: str = name) -> Dataset:
            return _read_as(config, other, workdir, splits.train.classes, name)

        mask, unknown = saved_splits.trained_on(
            runs, splits.train.classes, dataset, config, read_again
        )
        for folder in unknown + [folder for folder in teacher.runs if folder not in runs]:
            console.log_info(
                f"{folder}: it is not known whether the teacher was trained on {name} images"
            )
        if not mask.any():
            continue
        line = (
            f"config.distill.workdir {config.distill.workdir}: was trained on "
            f"{int(mask.sum()):,} of the {console.counted(len(dataset), f'{name} image')}"
        )
        if name == "test" and config.data.clean != "report":
            raise UserError(
                f"{line}; expected a teacher with the same test images, or "
                "config.data.clean=report to accept figures that are too good"
            )
        console.log_info(f"{line}; the figures on {name} may be too good")


def _reading(config: Config) -> tuple[int, str, str]:
    return config.data.image_size, config.data.fit, config.data.scale


def _read_as(
    config: Config,
    other: Config,
    workdir: pathlib.Path,
    classes: tuple[str, ...],
    name: str,
) -> Dataset:
    """Reads a split of the run in `workdir` as the config of another run says."""
    size, fit, scale = _reading(other)
    content = config.to_dict()
    content["data"] |= {"image_size": size, "fit": fit, "scale": scale or config.data.scale}
    read_with = config_lib.validate(
        {**content, "phases": {}, "model": {**content["model"], "name": other.model.name}}
    )
    file = workdir / saved_splits.SPLITS_FILE
    return saved_splits.recall(read_with, file, classes, name, lazy=True)


def _write(
    path: pathlib.Path, probabilities: Float32[np.ndarray, "n classes"], pixels: str
) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, probabilities=probabilities, pixels=np.array(pixels))
    atomic_write(path, buffer.getvalue())


def _read(
    path: pathlib.Path, pixels: str, shape: tuple[int, int]
) -> Float32[np.ndarray, "n classes"]:
    expected = "the teacher's probabilities that the run wrote before its first step"
    try:
        with np.load(path, allow_pickle=False) as content:
            probabilities, stored = content["probabilities"], str(content["pixels"])
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}, expected {expected}") from error
    except Exception as error:  # numpy and zipfile raise many types for a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path}: is damaged ({reason}), expected {expected}") from error
    if stored != pixels or probabilities.shape != shape or probabilities.dtype != np.float32:
        raise UserError(f"{path}: is of other images, expected {expected}")
    return probabilities
