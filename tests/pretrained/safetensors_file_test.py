"""Tests of bloodjax/pretrained/safetensors_file.py."""

import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.errors import UserError
from bloodjax.pretrained import safetensors_file


def _arrays():
    ramp = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        "a/kernel": ramp,
        "transposed": ramp.T,
        "half": ramp.astype(np.float16),
        "bfloat": ramp.astype(jnp.bfloat16),
        "double": ramp.astype(np.float64),
        "count": np.array(2**40, np.int64),
        "empty": np.zeros((0, 3), np.float32),
    }


def _same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        assert ours[name].shape == theirs[name].shape


def test_reads_back_what_it_wrote_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("old")
    safetensors_file.write(path, _arrays(), {"mean": "0.5", "größe": "224"})
    arrays, metadata = safetensors_file.read(path)
    _same(arrays, _arrays())
    assert metadata == {"mean": "0.5", "größe": "224"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_reads_what_torch_wrote_and_torch_reads_what_we_write(tmp_path):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    import safetensors.torch

    path = tmp_path / "a.safetensors"
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    safetensors.torch.save_file(state, path)
    arrays, metadata = safetensors_file.read(path)
    assert metadata == {}
    np.testing.assert_array_equal(arrays["a"], state["a"].numpy())
    assert arrays["b"].dtype == jnp.bfloat16
    safetensors_file.write(path, arrays, {})
    again = safetensors.torch.load_file(path)
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_metadata_that_are_not_utf_8_are_escaped(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, {"a": np.ones(2, np.float32)}, {"source": "caf\udce9 \u00e9.pth"})
    assert safetensors_file.read(path)[1] == {"source": "caf\\udce9 \u00e9.pth"}


def test_truncation_is_one_line(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, _arrays(), {"a": "b"})
    whole = path.read_bytes()
    for length in (0, 4, 8, 50, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"a\.safetensors: truncated or not") as caught:
            safetensors_file.read(path)
        assert "\n" not in str(caught.value)


def test_says_where_it_cannot_write(tmp_path):
    with pytest.raises(UserError, match="expected a file to write"):
        safetensors_file.write(tmp_path / "none" / "a.safetensors", _arrays(), {})
