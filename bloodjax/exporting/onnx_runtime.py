"""ONNX files in onnxruntime on CPU, and their quantisation. The one door to onnxruntime."""

from __future__ import annotations

import pathlib
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnxruntime
from jaxtyping import UInt8
from onnxruntime import quantization

from bloodjax.exporting.function import PROBABILITIES

INPUT = "images"
# Images that the ranges of the activations are taken from.
CALIBRATION_IMAGES = 256
_BATCH = 16
# What is computed in integers. Normalisation, softmax and calibration stay in float32.
_OPERATORS = (
    *("Conv", "MatMul", "Gemm", "Add", "Mul", "Relu", "Clip", "Sigmoid", "Concat"),
    *("MaxPool", "AveragePool", "GlobalAveragePool"),
)


def runner(content: bytes, threads: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images to class probabilities that runs an ONNX file.

    Args:
      content: Content of the file.
      threads: Threads of an operation; 0 is onnxruntime's default, one per core.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([PROBABILITIES], {INPUT: images})[0]


class _Batches(quantization.CalibrationDataReader):
    def __init__(self, images: np.ndarray):
        self._batches: Iterator[np.ndarray] = iter(
            [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def quantised(
    content: bytes, images: UInt8[np.ndarray, "n size size 3"], excluded: Iterable[str]
) -> bytes:
    """The ONNX file with 8-bit weights and activations (static quantisation, QDQ form).

    Weights are int8 with one scale per output channel, activations are uint8. Weights use 7 bits:
    without instructions for it (VNNI), x86 processors add pairs of products in 16 bits, which 8
    bits would overflow.

    Args:
      content: Content of the float32 file.
      images: Training images, from which the ranges of the activations are taken.
      excluded: Names of nodes that stay in float32.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # It computes a scale for each constant, also for the -inf of a class that cannot occur,
        # whose nodes are excluded.
        warnings.simplefilter("ignore", RuntimeWarning)
        source, target = (pathlib.Path(folder) / name for name in ("float.onnx", "int8.onnx"))
        source.write_bytes(content)
        quantization.quantize_static(
            source,
            target,
            _Batches(images),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_OPERATORS),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(excluded),
        )
        return target.read_bytes()
