"""Exports a run to a file that other tools run, after checking that it answers alike."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, PyTree

from bloodjax.cli import console
from bloodjax.data import lazy
from bloodjax.errors import UserError, did_you_mean
from bloodjax.evaluation.appearance import UNCHANGED
from bloodjax.evaluation.site import Site
from bloodjax.exporting import bundle as bundle_lib
from bloodjax.exporting import companions, function, stablehlo, verification
from bloodjax.exporting.bundle import Bundle
from bloodjax.exporting.graph import UnsupportedError
from bloodjax.models.head import Network

# Format -> suffix of its files, and the largest difference from the run's own probabilities.
FORMATS = {"stablehlo": (".stablehlo", 1e-5), "onnx": (".onnx", 1e-4)}
# The same where the stains of a site are changed: logarithms and exponentials of two runtimes round
# differently, so that a few pixels in a million differ by one grey level (`Appearance`).
_STAINED_TOLERANCE = 1e-2
QUANTIZE = ("none", "int8")
# Format -> packages that it needs. jax imports flatbuffers when it serialises a program, and does
# not install it.
_NEEDED = {"stablehlo": ("flatbuffers",), "onnx": ("onnx", "onnxruntime")}
# Accuracy that quantisation may lose without a warning, and the difference that the script of a
# quantised file allows at least: processors round sums of 8-bit products differently.
_MOST_LOST, _INT8_TOLERANCE = 0.01, 0.05


def export_run(
    workdir: pathlib.Path,
    file_format: str,
    out: pathlib.Path,
    *,
    features: bool = False,
    quantize: str = "none",
    tta: str = "none",
    calibrated: bool = True,
) -> dict[str, object]:
    """Writes a run's classifier as one file, with metadata, test vectors and a script beside it.

    Nothing is written unless the file's probabilities equal the run's on its validation images.

    Args:
      workdir: Folder of the run.
      file_format: A key of `FORMATS`.
      out: The file, with the format's suffix.
      features: Whether the file also returns features.
      quantize: "none" or "int8".
      tta: Views to average over; see `bundle.collect`.
      calibrated: Whether the probabilities are calibrated.

    Returns:
      The content of the JSON file.

    Raises:
      UserError: The run, the place or a package is missing, the network cannot be exported, or the
        probabilities differ.
    """
    check(file_format, out, quantize)
    bundle = collect(workdir, tta, calibrated)
    return write(
        bundle,
        workdir,
        file_format,
        out,
        verification.expected(bundle, calibrated),
        features=features,
        quantize=quantize,
    )


def collect(workdir: pathlib.Path, tta: str, calibrated: bool) -> Bundle:
    """The result of `bundle.collect`; lines say what is missing in it."""
    bundle = bundle_lib.collect(workdir, tta=tta, calibrated=calibrated)
    if bundle.checked_on != "validation":
        console.log_info(
            f"{workdir}: the run has no validation images; the export is checked on its "
            f"{bundle.checked_on} images"
        )
    if not bundle.weights.licence and bundle.weights.location:
        console.log_info(f"{bundle.weights.location}: the licence of the weights is not known")
    return bundle


def write(
    bundle: Bundle,
    workdir: pathlib.Path,
    file_format: str,
    out: pathlib.Path,
    expected: Float[np.ndarray, "n classes"],
    *,
    features: bool = False,
    quantize: str = "none",
) -> dict[str, object]:
    """Writes a classifier as one file, and the files beside it; see `export_run`.

    Args:
      bundle: The classifier.
      workdir: Folder of its run.
      file_format: A key of `FORMATS`.
      out: The file.
      expected: From `verification.expected`.
      features: Whether the file also returns features.
      quantize: "none" or "int8".
    """
    step_config = bundle.classifier.predictor.step_config
    exported = function.exported(
        step_config.model,
        step_config.mean,
        step_config.std,
        chosen=bundle.views,
        calibration=bundle.calibration,
        site=bundle.classifier.site,
        classes=bundle.classes,
        features=features,
    )
    variables = bundle.classifier.predictor.variables
    build = _stablehlo if file_format == "stablehlo" else _onnx
    content, run = build(bundle, exported, variables, features)
    allowed = tolerance(file_format, bundle.classifier.site)
    difference = verification.compare(run, bundle, expected)
    verification.check(difference, allowed, f"{bundle.config.model.name} as {file_format}")
    metadata = {
        **bundle.to_dict(),
        "format": file_format,
        "input": _input_text(bundle, file_format),
        "outputs": [function.PROBABILITIES, *[function.FEATURES] * features],
        "dtype": "float32",
        "quantized": quantize,
        "largest_difference": difference.largest,
        "checked_images": difference.images,
        "checked_on": difference.split,
        "tolerance": allowed,
    }
    if quantize == "int8":
        content, found = _quantised(bundle, content, run, workdir)
        metadata |= found
    if file_format == "onnx":
        from bloodjax.exporting import onnx_file

        content = onnx_file.with_metadata(content, metadata)
    companions.write(out, content, file_format, bundle, metadata)
    console.log_info(
        f"{out.name}: largest difference from the run's probabilities: "
        f"{metadata['largest_difference']:.1e} on {metadata['checked_images']} "
        f"{metadata['checked_on']} images (at most {metadata['tolerance']:.0e})"
    )
    return metadata


def tolerance(file_format: str, site: Site | None) -> float:
    """The largest difference from the run's own probabilities that an export may have.

    Args:
      file_format: A key of `FORMATS`.
      site: The site of the run, or None.
    """
    stained = site and site.appearance and site.appearance.density != UNCHANGED
    return _STAINED_TOLERANCE if stained else FORMATS[file_format][1]


def check(file_format: str, out: pathlib.Path, quantize: str) -> None:
    """Checks what can be checked before a run is loaded.

    Raises:
      UserError: A value is unknown, a package is missing, or `out` exists or cannot be written.
    """
    if file_format not in FORMATS:
        raise UserError(f"--format={file_format}: {did_you_mean(file_format, (*FORMATS, 'hub'))}")
    suffix = FORMATS[file_format][0]
    if out.suffix != suffix:
        raise UserError(f"--out={out}: expected FILE{suffix} for --format={file_format}")
    if quantize not in QUANTIZE:
        raise UserError(f"--quantize={quantize}: {did_you_mean(quantize, QUANTIZE)}")
    if quantize != "none" and file_format != "onnx":
        raise UserError(f"--quantize={quantize}: expected --format=onnx, not {file_format}")
    check_packages(file_format, file_format)
    companions.check_new(out)


def check_packages(file_format: str, asked_for: str) -> None:
    """Raises a UserError if a package for `file_format` is missing; `asked_for` is --format."""
    missing = missing_packages(file_format)
    if missing:
        raise UserError(
            f"--format={asked_for}: {' and '.join(missing)} missing, expected "
            "pip install 'bloodjax[export]'"
        )


def missing_packages(file_format: str) -> list[str]:
    """The packages that a format needs and that are not installed."""
    return [name for name in _NEEDED[file_format] if importlib.util.find_spec(name) is None]


def onnx_bytes(
    model: Network,
    variables: PyTree,
    size: int,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    **options: object,
) -> bytes:
    """A network as the content of an ONNX file, without a run.

    The input `images` is uint8 [batch, size, size, 3], the output `probabilities` float32 [batch,
    classes].

    Args:
      model: The network, with float32 as its compute dtype.
      variables: Its variables.
      size: Height and width of the images in pixels.
      mean: Per-channel mean of images in 0..1.
      std: Per-channel standard deviation of images in 0..1.
      **options: Other arguments of `function.exported`.

    Raises:
      UserError: The network has more than 2 GiB.
      UnsupportedError: The network has an operation that has no translation.
    """
    exported = function.exported(model, mean, std, **options)
    return _onnx_bytes(exported, variables, size, bool(options.get("features")))


def _onnx_bytes(exported: function.Exported, variables: PyTree, size: int, features: bool) -> bytes:
    from bloodjax.exporting import fusion, onnx_file, onnx_runtime, tracing

    traced = tracing.trace(exported, variables, (size, size, 3), np.uint8)
    fusion.fuse(traced)
    outputs = [function.PROBABILITIES, *[function.FEATURES] * features]
    return onnx_file.model_bytes(traced, [onnx_runtime.INPUT], outputs, {})


def _onnx(bundle: Bundle, exported, variables, features: bool) -> tuple[bytes, Callable]:
    from bloodjax.exporting import onnx_runtime

    try:
        content = _onnx_bytes(exported, variables, bundle.image_size, features)
    except UnsupportedError as error:
        raise UserError(
            f"{bundle.config.model.name} as onnx: {error} has no ONNX form; expected another "
            "network, other --tta, or --format=stablehlo"
        ) from error
    return content, onnx_runtime.runner(content)


def _stablehlo(bundle: Bundle, exported, variables, features: bool) -> tuple[bytes, Callable]:
    del features  # the function returns them
    content = stablehlo.program(exported, variables, bundle.image_size, bundle.fit)
    return content, stablehlo.runner(content)


def _input_text(bundle: Bundle, file_format: str) -> str:
    size = f"{bundle.image_size}, {bundle.image_size}" if file_format == "onnx" else "height, width"
    return f"uint8 [batch, {size}, 3], RGB"


def _quantised(
    bundle: Bundle, content: bytes, run: verification.Run, workdir: pathlib.Path
) -> tuple[bytes, dict[str, object]]:
    """The file in 8 bits, and what changed for the metadata."""
    from bloodjax.exporting import onnx_file, onnx_runtime

    train = bundle_lib.recall(bundle.classifier, workdir, "train")
    rng = np.random.default_rng(bundle.config.seed)
    count = min(len(train), onnx_runtime.CALIBRATION_IMAGES)
    chosen = np.sort(rng.choice(len(train), count, replace=False))
    images = np.asarray(train.images[chosen])
    scopes = ("input", "normalise", function.SITE_SCOPE, function.CALIBRATION_SCOPE)
    excluded = onnx_file.node_names(content, scopes)
    small = onnx_runtime.quantised(content, images, excluded)
    run_small = onnx_runtime.runner(small)
    shown, labels = bundle.images, bundle.labels
    # Images of a class that cannot occur at the run's site would be wrong in any form.
    possible = np.isin(bundle.classes, bundle.classifier.possible_classes)
    rows = np.flatnonzero(possible[labels])
    if 0 < len(rows) < len(labels):
        shown, labels = lazy.take(shown, rows), labels[rows]
    before, after = (verification.accuracy(each, shown, labels) for each in (run, run_small))
    largest = float(np.abs(run_small(bundle.vectors.images) - bundle.vectors.probabilities).max())
    console.log_info(
        f"int8: accuracy {after:.4f}, float32 {before:.4f}, on {len(labels)} "
        f"{bundle.checked_on} images; {len(small) / 2**20:.1f} MiB in place of "
        f"{len(content) / 2**20:.1f}"
    )
    if before - after > _MOST_LOST:
        console.log_info(
            f"warning: int8 loses {100 * (before - after):.1f} points of accuracy; expected "
            "at most 1. Export without --quantize where accuracy matters"
        )
    return small, {
        "accuracy_float32": before,
        "accuracy_int8": after,
        "largest_difference": largest,
        "checked_images": len(bundle.vectors.images),
        "tolerance": max(_INT8_TOLERANCE, 2 * largest),
    }


def use_cpu() -> None:
    """Has JAX compute on the CPU only, in float32: the results do not depend on the machine."""
    jax.config.update("jax_platforms", "cpu")
