"""A trained classifier as a folder to share: config.json, model.safetensors and fitted files.

`model.safetensors` is a file of `pretrained.bloodjax_file`: float32 tensors named by the network's
variables. `config.json` describes the classifier, and has under `run` the config of the run that
trained it, with the names of its sources but not their paths. The files that were fitted to the
run's data are those of its workdir; `splits.json` has the hashes of the training images only.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from bloodjax import config as config_lib
from bloodjax.config import Config
from bloodjax.data import splits as splits_lib
from bloodjax.errors import UserError
from bloodjax.evaluation import calibration, referral, rejection, site, thresholds, tta_selection
from bloodjax.evaluation import classifier as classifier_lib
from bloodjax.evaluation.classifier import Classifier
from bloodjax.io import files
from bloodjax.models.registry import architecture
from bloodjax.pretrained import bloodjax_file, name_maps, readers
from bloodjax.pretrained.merge import merge
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg
from bloodjax.training import factory, saved_splits

CONFIG_FILE = "config.json"
WEIGHTS_FILE = readers.FOLDER_FILE
# Files of a workdir that complete a classifier; see `classifier.with_files_of`.
FITTED = (
    tta_selection.FILE,
    calibration.FILE,
    referral.FILE,
    rejection.FILE,
    rejection.ARRAYS_FILE,
    site.FILE,
    thresholds.FILE,
)
_LIBRARY = "bloodjax"
# Values of the config that name no path.
_NO_PATH = re.compile(
    r"(tfds|synthetic|hf|hf-dataset|package):.*|auto|imagenet|synthetic|", re.DOTALL
)
_NUMBER = re.compile(r"[0-9]*\.?[0-9]*")


def write(
    folder: pathlib.Path,
    model: Classifier,
    workdir: pathlib.Path,
    metadata: Mapping[str, object],
    without: Sequence[str] = (),
) -> None:
    """Writes a classifier to an existing folder.

    Args:
      folder: The folder.
      model: The classifier.
      workdir: Folder of its run, with `splits.json` and fitted files.
      metadata: More JSON values for `config.json`.
      without: Fitted files that are not copied.
    """
    config = shared_config(model.config)
    source, (mean, std) = config.model.source, factory.normalisation(config)
    cfg = PretrainedCfg(
        source.location,
        bloodjax_file.FORMAT,
        config.model.variant or source.variant,
        mean,
        std,
        config.data.image_size,
        source.interpolation,
        source.licence,
        source.citation,
    )
    name, classes = config.model.name, model.classes
    bloodjax_file.write(folder / WEIGHTS_FILE, name, len(classes), cfg, model.predictor.variables)
    for fitted in FITTED:
        if fitted not in without and (workdir / fitted).is_file():
            shutil.copyfile(workdir / fitted, folder / fitted)
    saved = splits_lib.load(workdir / saved_splits.SPLITS_FILE)
    splits_lib.write(folder / saved_splits.SPLITS_FILE, _shared_splits(saved))
    content = {
        "library_name": _LIBRARY,
        "architecture": name,
        "num_classes": len(classes),
        "id2label": dict(enumerate(classes)),
        "label2id": {label: i for i, label in enumerate(classes)},
        **metadata,
        "classes": list(classes),
        "step": model.step,
        "run": config.to_dict(),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    files.atomic_write(folder / CONFIG_FILE, text)


def _shared_splits(saved: Mapping) -> dict[str, object]:
    """The hashes of a run's training images, by which `evaluate` recognises them.

    Without the names of the images, which may tell whose they are.
    """
    hashes = {split: saved["pixels"][split] for split in ("train",) if split in saved["pixels"]}
    return {
        "seed": saved["seed"],
        "sources": {
            split: {
                "spec": without_folders(saved["sources"][split]["spec"]),
                "fingerprint": saved_splits.NOT_SHARED,
            }
            for split in hashes
        },
        "classes": saved["classes"],
        "pixels": hashes,
        "parts": {split: [str(i) for i in range(len(saved["parts"][split]))] for split in hashes},
        **{key: saved[key] for key in (splits_lib.ADAPTED_TO,) if key in saved},
    }


def shared_config(config: Config) -> Config:
    """`config` without the folders of its sources, weights and teachers: only their names are kept.

    The folder of a table's images is left out: without it, they are beside the table.
    """
    content = config.to_dict()
    for key in ("train", "validation", "test"):
        content["data"][key] = without_folders(content["data"][key])
    content["data"]["images"] = ""
    distill = content["distill"]
    distill["workdir"] = ",".join(map(without_folders, distill["workdir"].split(",")))
    model = content["model"]
    model["weights"] = without_folders(model["weights"])
    model["source"]["location"] = without_folders(model["source"]["location"])
    return config_lib.validate(content)


def without_folders(value: str | float) -> str | float:
    """The name of a file or folder; other values of `data.train` or `model.weights` unchanged."""
    if not isinstance(value, str) or _NO_PATH.fullmatch(value):
        return value
    name = os.path.basename(value.rstrip("/")) or value
    # A folder of this name would be taken for a value that is no path.
    return f"./{name}" if _NO_PATH.fullmatch(name) or _NUMBER.fullmatch(name) else name


def is_model_folder(folder: pathlib.Path) -> bool:
    """Whether `write` wrote the folder: its `config.json` says that it is of this library."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text("utf-8"))
        return content.get("library_name") == _LIBRARY
    except (AttributeError, OSError, RecursionError, ValueError):
        return False


def load(folder: pathlib.Path) -> Classifier:
    """Loads the classifier in a folder that `write` wrote.

    Raises:
      UserError: A file is missing or damaged, or the weights are not those of the network.
    """
    config, classes, step = files.read_json(
        folder / CONFIG_FILE, "the config of an exported model", _from_json
    )
    path = folder / WEIGHTS_FILE
    tensors = readers.read_tensors(path)
    network = architecture(config.model.name)
    if bloodjax_file.parse_metadata(str(path), network, tensors.metadata) is None:
        raise UserError(f"{path}: bloodjax did not write it, expected the exported weights")
    variables = merge(
        tensors.arrays,
        name_maps.name_map(network, bloodjax_file.FORMAT),
        factory.shapes(config, len(classes)),
        location=str(path),
    )
    if not all(np.isfinite(array).all() for array in tensors.arrays.values()):
        raise UserError(f"{path}: has values that are not finite, expected trained weights")
    return classifier_lib.with_files_of(folder, config, classes, variables, step)


def _from_json(content: Mapping) -> tuple[Config, tuple[str, ...], int]:
    classes = tuple(content["classes"])
    if len(classes) < 2 or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"classes {classes!r}")
    return config_lib.validate(content["run"]), classes, int(content["step"])
