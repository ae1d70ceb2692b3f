"""Tests of bloodjax/pretrained/keras_file.py."""

import configparser
import importlib.util
import os
import pathlib
import sys

import h5py
import numpy as np
import pytest

from bloodjax.errors import UserError
from bloodjax.pretrained import keras_file

os.environ.setdefault("KERAS_BACKEND", "jax")

# Keras's own warning when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def keras():
    return pytest.importorskip("keras", reason="needs the extra [parity]")


def _randomise(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape).astype(np.float32) for w in model.weights])


def _small(keras):
    layers = keras.layers
    inputs = keras.Input((8, 8, 3))
    # Numbers that do not follow the order of creation, as after building several networks.
    x = layers.Conv2D(4, 3, name="conv2d_7", use_bias=False)(inputs)
    x = layers.BatchNormalization(name="batch_normalization_9", scale=False)(x)
    x = layers.DepthwiseConv2D(3, name="dw")(x)
    x = layers.BatchNormalization(name="dw_bn")(x)
    x = layers.SeparableConv2D(5, 3, name="sep")(x)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.Conv2D(4, 1, name="conv2d_2")(x)
    x = layers.Normalization(name="normalization", mean=None)(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(2, name="predictions")(x))


def _check(path, model):
    arrays = keras_file.read(path)
    expected = {
        f"{layer.name}/{w.name}": np.asarray(w) for layer in model.layers for w in layer.weights
    }
    assert arrays.keys() == expected.keys()
    for name, value in expected.items():
        assert arrays[name].dtype == value.dtype
        np.testing.assert_array_equal(arrays[name], value, err_msg=name)


def _save_old(model, path):
    """Writes weights in the legacy format, which `save_weights` no longer writes."""
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def _check_all(model, folder):
    _randomise(model)
    model.save_weights(folder / "new.weights.h5")
    _check(folder / "new.weights.h5", model)
    _save_old(model, folder / "old.h5")
    _check(folder / "old.h5", model)
    model.save(folder / "whole.h5")
    _check(folder / "whole.h5", model)


@pytest.mark.full
def test_reads_every_layout_of_every_layer(keras, tmp_path):
    _check_all(_small(keras), tmp_path)


def test_reads_mobilenet(keras, tmp_path):
    model = keras.applications.MobileNet(weights=None, alpha=0.25, input_shape=(32, 32, 3))
    _check_all(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet50", "InceptionV3", "EfficientNetB0"])
def test_reads_the_networks(keras, tmp_path, name):
    network = getattr(keras.applications, name)
    _check_all(network(weights=None, input_shape=(96, 96, 3), classes=3), tmp_path)


def test_reads_a_network_within_a_network(keras, tmp_path):
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="a"),
            keras.layers.Conv2D(4, 3, name="b"),
        ],
        name="inner",
    )
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 1, name="c")(inner(inputs)))
    names = {f"{layer}/{variable}" for layer in "abc" for variable in ("kernel", "bias")}
    model.save_weights(tmp_path / "new.weights.h5")
    assert keras_file.read(tmp_path / "new.weights.h5").keys() == names
    _save_old(model, tmp_path / "old.h5")
    assert keras_file.read(tmp_path / "old.h5").keys() == names


def _write_old(path, layers, cut=None):
    """Writes the legacy format as Keras 1 and 2 did: bytes in attributes, suffixes on names."""
    with h5py.File(path, "w") as file:
        names = [layer.encode() for layer in layers]
        if cut:
            file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:cut], names[cut:]
        else:
            file.attrs["layer_names"] = names
        for layer, weights in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [w.encode() for w in weights]
            for number, weight in enumerate(weights):
                group[weight] = np.full((2,), number, np.float32)


@pytest.mark.parametrize("cut", [None, 1], ids=["whole", "cut"])
def test_reads_the_published_files_names(tmp_path, cut):
    path = tmp_path / "a.h5"
    layers = {
        "block1_conv1": ["block1_conv1_W_1:0", "block1_conv1_b_1:0"],
        "bn": ["bn_gamma:0", "bn_beta:0", "bn_running_mean:0", "bn_running_std:0"],
        "conv1/bn": ["conv1/bn/gamma:0", "conv1/bn/moving_variance:0"],
        "dw": ["dw/depthwise_kernel:0"],
        "flatten": [],
    }
    _write_old(path, layers, cut)
    arrays = keras_file.read(path)
    assert list(arrays) == [
        *("block1_conv1/kernel", "block1_conv1/bias"),
        *("bn/gamma", "bn/beta", "bn/moving_mean", "bn/moving_variance"),
        *("conv1/bn/gamma", "conv1/bn/moving_variance"),
        "dw/depthwise_kernel",
    ]
    np.testing.assert_array_equal(arrays["bn/moving_variance"], np.full(2, 3, np.float32))


def test_truncation_and_other_files_are_one_line(tmp_path):
    path = tmp_path / "a.h5"
    _write_old(path, {"a": ["a/kernel:0"]})
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:100], whole[: len(whole) // 2], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.h5: truncated or not a Keras file") as caught:
            keras_file.read(path)
        assert "\n" not in str(caught.value)


def test_another_hdf5_file_is_named(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["numbers"] = np.ones(3)
    with pytest.raises(UserError, match=r"a\.h5: contains no tensors"):
        keras_file.read(path)


def test_a_listed_tensor_that_is_not_there_is_an_error(tmp_path):
    path = tmp_path / "a.h5"
    _write_old(path, {"a": ["a/kernel:0"]})
    with h5py.File(path, "a") as file:
        del file["a/a/kernel:0"]
    with pytest.raises(UserError, match="truncated or not"):
        keras_file.read(path)


def test_numbers_without_layers_names_are_refused(tmp_path):
    path = tmp_path / "a.weights.h5"
    with h5py.File(path, "w") as file:
        file["layers/conv2d/vars/0"] = np.ones(3)
    with pytest.raises(UserError, match="layers/conv2d/vars has no layer name"):
        keras_file.read(path)


def test_without_h5py_the_error_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)  # makes its import fail
    spec = importlib.util.spec_from_file_location("keras_file_without_h5py", keras_file.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(UserError, match=r"w\.h5: .*h5py.*not installed: .*'bloodjax\[keras\]'$"):
        module.read(tmp_path / "w.h5")


def test_the_extra_brings_h5py():
    config = configparser.ConfigParser()
    config.read(pathlib.Path(__file__).parents[2] / "setup.cfg")
    extras = config["options.extras_require"]
    assert "h5py" in extras["keras"]
    assert "h5py" in extras["test"]
    assert "h5py" not in config["options"]["install_requires"]
