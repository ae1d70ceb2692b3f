import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bloodjax.exporting import fusion, graph, tracing
from bloodjax.ops.elementwise import gelu, layer_norm, relu6, silu

pytest.importorskip("onnx", reason="needs the extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
from bloodjax.exporting import onnx_file  # noqa: E402

_RNG = np.random.default_rng(0)
_SHAPE = (6, 6, 8)
_KERNEL = _RNG.normal(size=(3, 3, 8, 4)).astype(np.float32)
_MATRIX = _RNG.normal(size=(8, 5)).astype(np.float32)
_CHANNELS = _RNG.normal(size=8).astype(np.float32)
_NHWC = ("NHWC", "HWIO", "NHWC")


def _content(function, shape=_SHAPE):
    traced = tracing.trace(lambda _, x: (function(x),), {}, shape, np.float32)
    fusion.fuse(traced)
    return onnx_file.model_bytes(traced, ["x"], ["y"], {"note": "a text", "sizes": [1, 2]})


def _session(content):
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def _conv(x, kernel=_KERNEL, stride=1, padding=((1, 1), (1, 1)), **options):
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_NHWC, **options
    )


def _depthwise(x):
    return _conv(x, jnp.asarray(_KERNEL[..., :1]).transpose(0, 1, 3, 2), feature_group_count=8)


def _blurred_as_channels(x):
    # As under vmap: the channels are examples, and the order of the axes is another one.
    numbers = ("NHWC", "HWIO", "NHWC")
    each = x.transpose(0, 3, 1, 2).reshape(-1, 6, 6, 1)
    return lax.conv_general_dilated(
        each, jnp.asarray(_KERNEL[:, :, :1, :1]), (1, 1), "SAME", dimension_numbers=numbers
    ).reshape(-1, 8, 36)


def _first_channels(x):
    return lax.conv_general_dilated(
        x.transpose(0, 3, 1, 2),
        jnp.asarray(_KERNEL),
        (1, 1),
        "SAME",
        dimension_numbers=("NCHW", "HWIO", "NCHW"),
    )


def _pool(x, kind, initial, window=3, stride=2):
    sizes, strides = (1, window, window, 1), (1, stride, stride, 1)
    return lax.reduce_window(x, initial, kind, sizes, strides, ((0, 0), (1, 1), (1, 1), (0, 0)))


def _mean_without_padding(x):
    counts = _pool(jnp.ones((1, *_SHAPE[:2], 1), jnp.float32), lax.add, 0.0)
    return _pool(x, lax.add, 0.0) / counts


def _affine(x):
    return x * _CHANNELS[None, None, None] + _CHANNELS[None, None, None]


def _attention(x):
    flat = x.reshape(x.shape[0], 36, 8)
    weights = jax.nn.softmax(jnp.einsum("bic,bjc->bij", flat, flat), axis=-1)
    return jnp.einsum("bij,bjc->bic", weights, flat)


_FUNCTIONS = {
    "arithmetic": lambda x: jnp.abs(x - 1.0) ** 1.5 / (2.0 + jnp.square(x)) - (-x) ** 3,
    "activations": lambda x: silu(x) + relu6(4 * x) + jnp.tanh(x) + jax.nn.sigmoid(x),
    "logarithms": lambda x: jnp.log1p(jnp.exp(x)) + jnp.sqrt(jnp.abs(x)) + jnp.sign(x),
    "rounding": lambda x: jnp.round(x * 4) + jnp.floor(x) + jnp.ceil(x) + jnp.clip(x, -0.5, 0.5),
    "comparisons": lambda x: jnp.where((x > 0) & (x != 1), x, -x) + jnp.where(x <= 0, 1.0, 2.0),
    "bytes": lambda x: (x * 100).astype(jnp.int32).astype(jnp.float32),
    "gelu": lambda x: gelu(x),
    "layer norm": lambda x: layer_norm(x, jnp.asarray(_CHANNELS), jnp.asarray(_CHANNELS), 1e-6),
    "softmax": lambda x: jax.nn.softmax(x, axis=-1) + jax.nn.log_softmax(x, axis=-1),
    "convolution": _conv,
    "strided convolution": lambda x: _conv(x, stride=2, padding=((0, 1), (1, 2))),
    "dilated convolution": lambda x: _conv(x, rhs_dilation=(2, 2)),
    "depthwise convolution": _depthwise,
    "convolution of channels": _blurred_as_channels,
    "channels-first convolution": _first_channels,
    "pointwise convolution": lambda x: _conv(x[:, ::2, ::2] @ _MATRIX, jnp.ones((1, 1, 5, 2))),
    "patches": lambda x: jnp.einsum(
        "bhiwjc,ijco->bhwo", x.reshape(-1, 3, 2, 3, 2, 8), jnp.asarray(_KERNEL[:2, :2])
    ),
    "affine after a convolution": lambda x: (_affine(_conv(x, jnp.tile(_KERNEL, 2))) - 1.0) / 2.0,
    "max pooling": lambda x: _pool(x, lax.max, -jnp.inf),
    "sum pooling": lambda x: _pool(x, lax.add, 0.0),
    "average pooling": _mean_without_padding,
    "pooling by blocks": lambda x: x.reshape(-1, 3, 2, 3, 2, 8).mean(axis=(2, 4)),
    "means": lambda x: x.mean(axis=(1, 2)) + x.max(axis=(1, 2)) + x.min(axis=(1, 2)),
    "means of other axes": lambda x: x.mean(axis=(0, 3)[1:]) + x.sum(axis=3),
    "squeeze and excite": lambda x: _conv(x) * _conv(x).mean(axis=(1, 2), keepdims=True),
    "flips and turns": lambda x: x[:, ::-1].swapaxes(1, 2)[:, :, ::-1] + x,
    "parts": lambda x: jnp.concatenate([*jnp.split(_conv(x), 2, axis=3), x[..., 1:3]], axis=3),
    "padding": lambda x: jnp.pad(_conv(x), ((0, 0), (1, 0), (0, 2), (0, 1)), constant_values=2.0),
    "a broadcast": lambda x: jnp.concatenate([x, jnp.broadcast_to(x[:, :1, :1], x.shape)], axis=0),
    "resizing": lambda x: jax.image.resize(x, (*x.shape[:1], 9, 9, 8), "bilinear"),
    "products of arrays": _attention,
}


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_operations_equal_jax(name):
    content = _content(_FUNCTIONS[name])
    for batch in (1, 3):
        x = _RNG.normal(size=(batch, *_SHAPE)).astype(np.float32)
        (result,) = _session(content).run(None, {"x": x})
        expected = np.asarray(_FUNCTIONS[name](jnp.asarray(x)))
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("gelu", {"Gelu": 1}),
        ("layer norm", {"LayerNormalization": 1}),
        ("affine after a convolution", {"Conv": 1}),
        ("patches", {"Conv": 1}),
        ("average pooling", {"AveragePool": 1}),
        ("pooling by blocks", {"AveragePool": 1}),
        ("convolution", {"Conv": 1}),
    ],
)
def test_what_runtimes_have_a_kernel_for_is_one_node(name, operators):
    found = onnx_file.operators(_content(_FUNCTIONS[name]))
    assert {key: n for key, n in found.items() if key not in ("Transpose", "Identity")} == operators


def test_maps_are_transposed_at_the_ends_only():
    def function(x):
        x = jnp.maximum(_conv(x, jnp.tile(_KERNEL, 2)), 0.0)
        x = x + jax.nn.sigmoid(_affine(x) @ jnp.tile(_MATRIX, 2)[:, :8])
        return _pool(x, lax.max, -jnp.inf).mean(axis=(1, 2))

    assert onnx_file.operators(_content(function))["Transpose"] == 1


def test_the_file_has_metadata_and_a_symbolic_batch():
    session = _session(_content(_FUNCTIONS["means"]))
    assert session.get_inputs()[0].shape == ["batch", *_SHAPE]
    assert session.get_outputs()[0].shape == ["batch", 8]
    properties = session.get_modelmeta().custom_metadata_map
    assert properties == {"note": "a text", "sizes": "[1, 2]"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x, axis=-1), "the operation sort"),
        (lambda x: x + jnp.arange(x.shape[0], dtype=jnp.float32)[:, None, None, None], "iota"),
        (lambda x: lax.cumsum(x, axis=1), "the operation cumsum"),
        (lambda x: x[: x.shape[0] - 1], "a part of the batch"),
    ],
)
def test_an_operation_without_a_translation_is_named(function, message):
    with pytest.raises(graph.UnsupportedError, match=message):
        _content(function)
