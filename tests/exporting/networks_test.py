"""Each family in both formats: random weights, few classes, the smallest images that it takes."""

import jax
import numpy as np
import pytest

from bloodjax import models
from bloodjax.exporting import exporter, function, stablehlo
from bloodjax.metrics.calibration import Calibration

_MEAN, _STD = (0.5, 0.4, 0.6), (0.2, 0.3, 0.25)
_CALIBRATION = Calibration("vector", 0.7, (0.1, 0.0, -0.2), (1.0, 0.9, 1.1))
_QUICK = {"xla_backend_optimization_level": 0}
_SIZES = {
    "convnext_tiny": 32,
    "efficientnet_b0": 32,
    "resnet50": 32,
    "mobilenetv1_100": 32,
    "inception_v3": 75,
    "vgg16": 32,
    "densenet121": 32,
    "simple_cnn": 32,
}
_LONG = ("convnext_tiny", "densenet121", "inception_v3", "vgg16")


def _network(name):
    model = models.build(name, 3, hidden=(8,))
    shapes = jax.eval_shape(lambda: models.init_variables(model, _SIZES[name]))
    rng = np.random.default_rng(0)

    def value(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            spread = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            # Random networks tell images apart by little, and the head normalises that. Answers
            # that are less certain keep rounding, of the reference as well, below the tolerance.
            spread *= 0.2 if path[-2].key == "logits" else 1.0
            return rng.normal(0, spread, leaf.shape).astype(np.float32)
        spread = rng.normal(0, 0.1, leaf.shape).astype(np.float32)
        return np.abs(1 + spread) if kind in ("scale", "var") else spread

    return model, jax.tree_util.tree_map_with_path(value, shapes)


def _images(n, size):
    """Disks of many colours on others."""
    rng = np.random.default_rng(1)
    row, column = np.mgrid[:size, :size] / size - 0.5
    inside = row**2 + column**2 < rng.uniform(0.02, 0.2, (n, 1, 1))
    inner, outer = rng.uniform(20, 235, (2, n, 1, 1, 3))
    images = np.where(inside[..., None], inner, outer) + rng.normal(0, 10, (n, size, size, 3))
    return np.clip(images, 0, 255).astype(np.uint8)


def _with_statistics(variables, features):
    """The variables with the statistics of `features` in the head, so that no answer is certain."""
    var = features.var(axis=0)
    norm = {"mean": features.mean(axis=0), "var": var + var.mean()}
    statistics = {**variables["batch_stats"], "head": {"norm": norm}}
    return {**variables, "batch_stats": statistics}


@pytest.mark.parametrize(
    "name",
    [
        name
        if name == "simple_cnn"
        else pytest.param(name, marks=getattr(pytest.mark, "slow" if name in _LONG else "full"))
        for name in _SIZES
    ],
)
def test_both_formats_answer_as_the_network(name):
    pytest.importorskip("onnx", reason="needs the extra [export]")
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    from bloodjax.exporting import onnx_runtime

    model, variables = _network(name)
    size = _SIZES[name]
    images = _images(7, size)
    exported = function.exported(model, _MEAN, _STD, calibration=_CALIBRATION, features=True)
    compute = jax.jit(exported, compiler_options=_QUICK)
    variables = _with_statistics(variables, np.asarray(compute(variables, images)[1]))
    expected = compute(variables, images)[0]
    assert np.ptp(expected, axis=0).max() > 0.02, "the answers depend on the image"

    content = exporter.onnx_bytes(
        model,
        variables,
        size,
        mean=_MEAN,
        std=_STD,
        calibration=_CALIBRATION,
        features=True,
    )
    run = onnx_runtime.runner(content, threads=1)
    for batch in (1, 7):
        np.testing.assert_allclose(run(images[:batch]), expected[:batch], atol=1e-4)

    program = jax.export.deserialize(
        bytearray(stablehlo.program(exported, variables, size, "crop"))
    )
    assert program.platforms == stablehlo.PLATFORMS
    call = jax.jit(program.call, compiler_options=_QUICK)
    # Of another size: the middle square of each is the image.
    wide = np.pad(images, ((0, 0), (0, 0), (3, 3), (0, 0)))
    result = call(wide)
    assert set(result) == {"probabilities", "features"}
    np.testing.assert_allclose(result["probabilities"], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv1_025", "efficientnet_lite0"])
def test_depthwise_convolutions_take_a_symbolic_batch(name):
    # Their forms on a CPU depend on the number of images. Traced only.
    model = models.build(name, 3, hidden=())
    variables = jax.eval_shape(lambda: models.init_variables(model, 32))
    shape = jax.export.symbolic_shape("batch, 32, 32, 3")
    exported = function.exported(model, _MEAN, _STD)
    (result,) = jax.eval_shape(exported, variables, jax.ShapeDtypeStruct(shape, np.uint8))
    assert str(result.shape) == "(batch, 3)"
