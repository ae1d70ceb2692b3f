"""bloodjax: fine-tune ImageNet CNNs to classify cells under a microscope, in pure JAX.

`train` turns labelled images into a run's folder, `evaluate` scores it, and `load` returns its
classifier. Each function imports what it needs when it is called, so `import bloodjax` is fast.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bloodjax.config import Config
    from bloodjax.data.dataset import Dataset
    from bloodjax.evaluation.ensemble import load
    from bloodjax.models import list_models
    from bloodjax.pretrained.load import create_model

__version__ = "0.1.0"

__all__ = [
    "Dataset",
    "__version__",
    "create_model",
    "evaluate",
    "get_config",
    "list_models",
    "load",
    "load_dataset",
    "train",
]

# Name -> the module that defines it.
_ELSEWHERE = {
    "Dataset": "bloodjax.data.dataset",
    "create_model": "bloodjax.pretrained.load",
    "list_models": "bloodjax.models",
    "load": "bloodjax.evaluation.ensemble",
}


def get_config(name: str | os.PathLike[str]) -> Config:
    """A recipe's config, to be changed and given to `train`.

    Args:
      name: Name of a packaged recipe, such as "quickstart" (`bloodjax configs` lists them), or path
        of a Python file that defines `get_config()`.

    Returns:
      A mutable `ConfigDict`. Its values are checked by `train`.

    Raises:
      UserError: There is no such recipe or file, or the file cannot be run.
    """
    from bloodjax import config as config_lib

    return config_lib.get_config(os.fspath(name))


def train(
    config: Config | str | os.PathLike[str], workdir: str | os.PathLike[str]
) -> dict[str, dict]:
    """Trains a classifier, or resumes the run in `workdir`; then evaluates it and reports.

    Lines and a progress bar are shown unless the application handles the logger "bloodjax" itself;
    `logging.getLogger("bloodjax").setLevel(logging.WARNING)` silences both.

    Args:
      config: From `get_config`, or what `get_config` takes.
      workdir: Folder of the run, created if need be, or the URL of one in a bucket, such as
        "gs://bucket/run". The report is `report/index.html` in it.

    Returns:
      Split ("test", "validation") -> the content of its `metrics.json`.

    Raises:
      UserError: A config value, the data or the folder is wrong.
      Stopped: SIGINT or SIGTERM stopped the run after a checkpoint; the same call resumes it.
    """
    from bloodjax import config as config_lib
    from bloodjax import cross_validation, distributed, run
    from bloodjax.cli import console
    from bloodjax.training.remote_workdir import local_workdir

    console.show_lines_by_default()
    if isinstance(config, (str, os.PathLike)):
        config = config_lib.load(os.fspath(config))
    else:
        config = config_lib.validate(config)
    start = cross_validation.train if config.folds else run.train
    with (
        distributed.session(None, None, None, config.peer_timeout),
        local_workdir(workdir) as folder,
    ):
        return start(config, folder)


def evaluate(
    workdir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    split: str | None = None,
    tta: str | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    tta_select: str = "none",
    calibrate: bool = False,
    target_error: float | None = None,
    corruptions: str | None = None,
    bad_images: Literal["fail", "skip"] | None = None,
    layout: str | None = None,
    classes: str | Sequence[str] | None = None,
    columns: str | None = None,
    images: str | os.PathLike[str] | None = None,
) -> dict:
    """Scores a trained classifier on labelled images, and writes metrics.json and predictions.csv.

    Args:
      workdir: Folder of a run, or its URL in a bucket. The folds of one run, or several folders,
        are an ensemble: the mean of their probabilities.
      data: SPEC of the images: FILE.npz, a .zip or folder of <class>/<image>, a table of labels
        such as FILE.csv, tfds:NAME, hf-dataset:OWNER/NAME, or synthetic[:N].
      split: Part of `data`. If `data` is the source that the run was trained on: train, validation
        or test of its splits.json, by default test. Otherwise: one of the source's own splits, by
        default test, or everything if it has none.
      tta: Views for test-time augmentation: none, flip, d4, crops, colour, robust, zoom, d4_zoom,
        several joined by "+", or selected. By default those that the run selected, or its config's.
      out: Folder to write to; by default one in WORKDIR/evaluate.
      tta_select: How to weight the views on the run's validation split first: none, greedy or
        weights.
      calibrate: Whether to fit calibration, referral and the detector of unlike images to the run's
        own splits first, also of a run that has none. The run's folder keeps them.
      target_error: With `calibrate`, the share of wrong answers that is accepted among those that
        are not referred, above 0 and below 1. By default the run's `evaluation.target_error`.
      corruptions: Distortions to score the images under too: all, extra, everything, or
        NAME,NAME,...; `corruptions.json` and `corruptions.html` contain the result.
      bad_images: What to do about an unreadable image: raise an error ("fail") or leave it out
        ("skip"); by default as the run's config says.
      layout: What the folders of the data mean, such as "class/group", as `config.data.layout`. By
        default it is found from their names.
      classes: The classes that can occur in the images, as names or as one text such as
        "lymphocyte,monocyte". The others get the probability 0. By default all of the run's can, or
        those of its `site.json`.
      columns: What the columns of a table mean, such as "path=image_id,label=dx", as
        `config.data.columns`; by default as the run's.
      images: Folder or zip that the paths in a table are relative to. By default the table's own
        folder; of the run's own table, `config.data.images`.

    Returns:
      The content of `metrics.json`; with `corruptions`, that of `corruptions.json` under that key.
      If some of the images were trained on, it is that of the others, and "all" has that of all.

    Raises:
      UserError: There is no trained run, the data is wrong, the classes differ, or `out` has
        results of another source.
    """
    from bloodjax.cli import console
    from bloodjax.evaluation import scoring
    from bloodjax.io import staging

    console.show_lines_by_default()
    workdirs = [workdir] if isinstance(workdir, (str, os.PathLike)) else workdir
    with staging.opened():
        return scoring.evaluate_runs(
            [staging.open_run(folder) for folder in workdirs],
            os.fspath(data),
            split,
            tta,
            staging.open_output(out) if out else None,
            tta_select=tta_select,
            calibrate=calibrate,
            target_error=target_error,
            corruptions=corruptions,
            bad_images=bad_images,
            layout=layout,
            classes=classes,
            columns=columns,
            images=None if images is None else os.fspath(images),
        )


def load_dataset(
    spec: str | os.PathLike[str],
    image_size: int = 96,
    *,
    bad_images: Literal["fail", "skip"] = "fail",
    class_names: Sequence[str] = (),
    seed: int = 0,
    layout: str = "auto",
    bits: str | int = "auto",
    fit: str = "crop",
    columns: str = "",
    images: str | os.PathLike[str] = "",
    task: Literal["auto", "multi-class", "multi-label"] = "auto",
) -> Dataset:
    """All labelled images of a source, as squares of one size.

    Args:
      spec: FILE.npz, a .zip or folder of <class>/<image>, a table of labels such as FILE.csv,
        tfds:NAME, hf-dataset:OWNER/NAME, or synthetic[:N].
      image_size: Side in pixels of the resized images.
      bad_images: Whether an unreadable image in a folder or zip raises ("fail") or is left out with
        a warning ("skip").
      class_names: Classes in label order; by default the source's.
      seed: Random seed of the synthetic images.
      layout: What the folders of the source mean, such as "class/group", as `config.data.layout`.
      bits: Scale of values of more than 8 bits: "8", "10", "12", "14", "16", or "auto", which takes
        it from the largest value, as `config.data.bits`.
      fit: How images become squares: "crop", "pad", "squash" or such as "240px", as
        `config.data.fit`.
      columns: What the columns of a table mean, such as "path=image_id,label=dx", as
        `config.data.columns`; by default they are found by their names.
      images: Folder or zip that the paths in a table are relative to; by default the table's own.
      task: Whether an image has one class or any number of labels, as `config.data.task`.

    Returns:
      The dataset: `images` uint8 [n, image_size, image_size, 3], `labels` int32 [n], or 0 and 1 of
      shape [n, classes] if an image has any number of labels, `names`, `classes`. Images of a large
      source are read when they are indexed.

    Raises:
      UserError: The source is missing, damaged or has no image of a class.
    """
    from bloodjax.data import sources
    from bloodjax.data import spec as spec_lib
    from bloodjax.data.formats import columns as columns_lib
    from bloodjax.data.formats import layout as layout_lib
    from bloodjax.data.options import ReadOptions

    spec_lib.check_images([os.fspath(spec)], os.fspath(images))
    return sources.load(
        os.fspath(spec),
        image_size,
        options=ReadOptions(
            bad_images,
            str(bits),
            fit,
            layout_lib.check(layout, "layout"),
            columns_lib.check(columns, "columns"),
            os.fspath(images),
            task,
        ),
        class_names=class_names,
        seed=seed,
    )


def __getattr__(name: str):
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    if name == "settings":  # name of `bloodjax.config` in old config files
        return importlib.import_module("bloodjax.config")
    raise AttributeError(f"module 'bloodjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """Keeps a function of the package when the module of the command of that name is imported.

    `bloodjax.evaluate` is a function, and `python -m bloodjax.evaluate` runs a module. Importing
    the module would replace the function, as Python sets each submodule as an attribute.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in __all__ and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
