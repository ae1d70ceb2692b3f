"""Runs the examples on small data."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

import bloodjax
from bloodjax.data import images
from bloodjax.pretrained import bloodjax_file
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg

FOLDER = pathlib.Path(__file__).parents[1] / "examples"
DATA = "synthetic:64"


@pytest.fixture
def main(request):
    """The function `main` of the example that the test is named for."""
    name = request.function.__name__.removeprefix("test_")
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with jax.numpy_dtype_promotion("standard"):  # as in the process of a user
        yield module.main


@pytest.mark.full
def test_own_data(main, tmp_path, capsys):
    changes = {
        "data.image_size": 32,
        "batch_size": 16,
        "model.name": "simple_cnn",
        "phases.finetune.epochs": 1,
        "evaluation.bootstrap": 20,
    }
    main("synthetic:80", str(tmp_path / "run"), **changes)
    printed = capsys.readouterr().out
    assert re.search(r"^test accuracy 0\.\d{3} \(0\.\d{3} to ", printed, re.MULTILINE)
    assert (tmp_path / "run/report/index.html").exists()


@pytest.mark.full
def test_labels_table(main, tmp_path, capsys):
    cells = bloodjax.load_dataset("synthetic:80", 32)
    for i, (image, label) in enumerate(zip(cells.images, cells.labels, strict=True)):
        name = f"P{i % 20:02d}_{cells.classes[label]}_{i:04d}.png"
        (tmp_path / name).write_bytes(images.encode_png(image))
    changes = {
        "data.image_size": 32,
        "batch_size": 16,
        "model.name": "simple_cnn",
        "phases.finetune.epochs": 1,
        "evaluation.bootstrap": 20,
    }
    main(str(tmp_path), str(tmp_path / "run"), **changes)
    printed = capsys.readouterr().out
    assert "80 images of basophil, eosinophil" in printed
    assert "20 patients; columns path=path, label=label, group=patient" in printed
    assert re.search(r"^test accuracy 0\.\d{3} of \d+ images", printed, re.MULTILINE)


def test_features(main, tmp_path):
    out, path = tmp_path / "features.npz", tmp_path / "weights.safetensors"
    _, variables = bloodjax.create_model("simple_cnn", num_classes=3)
    bloodjax_file.write(path, "simple_cnn", 3, PretrainedCfg("", "", ""), variables)
    main(DATA, str(out), "simple_cnn", str(path), size=32)
    stored = np.load(out)
    shapes = [stored[name].shape for name in stored.files if name.startswith("stage_")]
    assert len(shapes) > 1
    assert all(len(shape) == 2 and shape[0] == 64 for shape in shapes)
    assert len(stored["names"]) == len(stored["labels"]) == 64


@pytest.mark.full
def test_own_loop(main, tmp_path, capsys):
    path = tmp_path / "weights.safetensors"
    _, variables = bloodjax.create_model("simple_cnn", num_classes=3)
    bloodjax_file.write(path, "simple_cnn", 3, PretrainedCfg("", "", ""), variables)
    before = jax.device_get(variables["params"]["backbone"])
    _, trained = main(DATA, "simple_cnn", str(path), steps=3, size=32)
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    after = jax.device_get(trained["params"]["backbone"])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert all(jax.tree.leaves(changed))


def test_every_example_is_short_and_has_a_test():
    for path in FOLDER.glob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 46
        assert f"test_{path.stem}" in globals()
