"""A trained classifier as a folder in the form of the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from bloodjax.cli import console
from bloodjax.data import splits as splits_lib
from bloodjax.errors import UserError
from bloodjax.evaluation import calibration, model_folder, referral
from bloodjax.exporting import companions, exporter, model_card, verification
from bloodjax.exporting.bundle import Bundle
from bloodjax.io import files
from bloodjax.metrics.calibration import NONE
from bloodjax.pretrained import hub
from bloodjax.training import saved_splits

CARD_FILE = "README.md"
# Largest difference of a probability between the run's classifier and the one in the folder.
_TOLERANCE = 1e-6
_CONTENT = {
    CARD_FILE: "this card",
    model_folder.CONFIG_FILE: "classes, preprocessing, metrics, and the config of the run",
    model_folder.WEIGHTS_FILE: "the network's variables in float32, named by their paths",
    saved_splits.SPLITS_FILE: "hashes of the training images, by which `evaluate` recognises them",
    "tta.json": "weights of the views for test-time augmentation",
    "calibration.json": "calibration of the probabilities",
    "referral.json": "the confidence below which an image is referred",
    "rejection.json": "the detector of images that are unlike the training cells",
    "site.json": "the site at which the classifier is used: its classes, shares and appearance",
    "rejection.npz": "arrays of that detector, computed from features of training images",
}
# Format of a program -> what its file is.
_PROGRAMS = {
    "stablehlo": "the classifier as a program for jax; images of any size",
    "onnx": "the classifier as a program for ONNX runtimes; images of the network's size",
}


def export_run(
    workdir: pathlib.Path,
    out: pathlib.Path,
    *,
    features: bool = False,
    tta: str = "none",
    calibrated: bool = True,
    push: str = "",
) -> None:
    """Writes a run's classifier as a folder, and uploads it if asked.

    Args:
      workdir: Folder of the run.
      out: The folder, which must not exist.
      features: Whether the programs in it also return features.
      tta: Views that the programs average over; see `bundle.collect`.
      calibrated: Whether the probabilities are calibrated.
      push: OWNER/NAME of the repository to upload to; empty for none.

    Raises:
      UserError: The run or the place is missing, the network cannot be exported, the probabilities
        differ, or the Hub refuses.
    """
    check(out, push)
    bundle = exporter.collect(workdir, tta, calibrated)
    write(bundle, workdir, out, features=features, calibrated=calibrated, name=push or out.name)
    if push:
        address = hub.push(out, push)
        console.log_info(f"uploaded to {address}; a new repository is private until you change it")


def check(out: pathlib.Path, push: str = "") -> None:
    """Checks the values of --out and --push before anything is computed.

    Raises:
      UserError: `out` exists or cannot be made, a package is missing, or `push` is no repository.
    """
    if os.path.lexists(out):
        raise UserError(f"--out={out}: exists already, expected a new folder")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}")
    files.make_folder(out.parent)
    exporter.check_packages("stablehlo", "hub")
    if push:
        hub.check_push(push, "--push")


def write(
    bundle: Bundle,
    workdir: pathlib.Path,
    out: pathlib.Path,
    *,
    features: bool = False,
    calibrated: bool = True,
    name: str = "",
    formats: Sequence[str] = tuple(_PROGRAMS),
) -> dict[str, str]:
    """Writes the folder, which appears when it is complete.

    Args:
      bundle: The classifier.
      workdir: Folder of its run.
      out: The folder, which must not exist.
      features: Whether the programs in it also return features.
      calibrated: Whether the calibration and the referral of the run belong to it.
      name: Name of the model, by default that of the folder.
      formats: Formats of the programs in it. ONNX is left out, and a line says so, if its packages
        are not installed or the network has no ONNX form.

    Returns:
      Name of each file -> what it contains.

    Raises:
      UserError: `out` cannot be written, or a classifier in it gives other probabilities.
    """
    with _new_folder(out) as folder:
        without = () if calibrated else (calibration.FILE, referral.FILE)
        metadata = _metadata(bundle, calibrated)
        model_folder.write(folder, bundle.classifier, workdir, metadata, without)
        check_answers(bundle, folder)
        content = {CARD_FILE: _CONTENT[CARD_FILE]}
        content |= {name: text for name, text in _CONTENT.items() if (folder / name).exists()}
        expected = verification.expected(bundle, calibrated) if formats else None
        for file_format in formats:
            content |= _program(bundle, workdir, folder, file_format, expected, features)
        card = describe(bundle, workdir, name or out.name, content, calibrated)
        files.atomic_write(folder / CARD_FILE, model_card.render(card))
    return content


def _program(
    bundle: Bundle,
    workdir: pathlib.Path,
    folder: pathlib.Path,
    file_format: str,
    expected: Float[np.ndarray, "n classes"],
    features: bool,
) -> dict[str, str]:
    """Writes a program and the files beside it, and returns what they contain."""
    path = folder / f"model{exporter.FORMATS[file_format][0]}"
    missing = exporter.missing_packages(file_format)
    try:
        if missing:
            raise UserError(f"{' and '.join(missing)} missing: pip install 'bloodjax[export]'")
        exporter.write(bundle, workdir, file_format, path, expected, features=features)
    except UserError as error:
        if file_format == "stablehlo":
            raise
        console.log_info(f"{path.name} is left out: {error}")
        return {}
    first, *others = (path.name for path in companions.names(path))
    texts = ("its metadata", "test vectors: images, and their probabilities", "checks the vectors")
    return {first: _PROGRAMS[file_format], **dict(zip(others, texts, strict=True))}


def check_answers(bundle: Bundle, folder: pathlib.Path) -> float:
    """The largest difference of a probability, on the test vectors, of the classifier in `folder`.

    Raises:
      UserError: It is larger than 1e-6.
    """
    loaded, vectors = model_folder.load(folder), bundle.vectors
    found = loaded.predict(vectors.images, bundle.tta, calibrated=loaded.is_calibrated)
    difference = float(np.abs(found - vectors.probabilities).max())
    if not difference <= _TOLERANCE:
        raise UserError(
            f"{folder}: the classifier in it gives probabilities that differ by {difference:.2g} "
            f"from the run's; expected at most {_TOLERANCE:g}, so nothing was written"
        )
    return difference


def describe(
    bundle: Bundle,
    workdir: pathlib.Path,
    name: str,
    content: Mapping[str, str],
    calibrated: bool = True,
) -> model_card.Card:
    """Collects the facts of the model card; see `model_card.Card` for the arguments."""
    saved = splits_lib.load(workdir / saved_splits.SPLITS_FILE)
    evaluated = [split for split in ("test", "validation") if split in bundle.metrics]
    split = evaluated[0] if evaluated else "test"
    model, metadata = bundle.classifier, _metadata(bundle, calibrated)
    return model_card.Card(
        name=name,
        metadata=metadata,
        sources={
            part: model_folder.without_folders(source["spec"])
            for part, source in saved["sources"].items()
        },
        sizes={part: len(names) for part, names in saved["parts"].items()},
        counts=_counts(bundle, workdir, saved["parts"]),
        split=split,
        metrics=_metrics(workdir, split) if evaluated else {},
        files=content,
        calibration=(model.calibration() if calibrated else NONE).to_dict(),
        referral=metadata["referral"],
        detector=model.detector.summary() if model.detector else None,
    )


def _metadata(bundle: Bundle, calibrated: bool) -> dict:
    """The bundle's metadata, and the thresholds of the referral, which need calibration."""
    found = bundle.classifier.referral if calibrated else None
    return bundle.to_dict() | {"referral": dataclasses.asdict(found) if found else None}


def _metrics(workdir: pathlib.Path, split: str) -> dict:
    return files.read_json(workdir / "evaluate" / split / "metrics.json", "metrics", dict)


def _counts(
    bundle: Bundle, workdir: pathlib.Path, parts: Mapping[str, object]
) -> dict[str, dict[str, int]]:
    """Split -> class -> number of images; without the splits whose source cannot be read."""
    counts = {}
    for part in parts:
        if part in bundle.metrics:
            found = _metrics(workdir, part)["per_class"]
            counts[part] = {name: found[name]["support"] for name in bundle.classes}
            continue
        try:
            labels = saved_splits.recall(
                bundle.config,
                workdir / saved_splits.SPLITS_FILE,
                bundle.classes,
                part,
                lazy=True,
            ).labels
        except UserError:
            continue
        numbers = np.bincount(labels, minlength=len(bundle.classes)).tolist()
        counts[part] = dict(zip(bundle.classes, numbers, strict=True))
    return counts


@contextlib.contextmanager
def _new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder that becomes `out` at the end, or is removed after an exception."""
    try:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"--out={out}: {files.reason(error)}, expected a folder to make") from error
    try:
        folder.chmod(0o755)  # mkdtemp allows only the user
        yield folder
        folder.rename(out)
    except OSError as error:
        why = files.reason(error)
        raise UserError(f"--out={out}: {why}, expected a folder to write") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
