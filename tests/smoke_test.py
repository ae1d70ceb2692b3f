"""A check of seconds: imports, one run from file to report, one step of each family."""

import functools
import importlib
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bloodjax
from bloodjax import run
from bloodjax.augment.policy import parse
from bloodjax.checkpoints.state import TrainState
from bloodjax.data.batches import DeviceDataset, epoch_order
from bloodjax.models import inception
from bloodjax.models.convnext import ConvNeXt
from bloodjax.models.densenet import DenseNet
from bloodjax.models.efficientnet import EfficientNet, Stage
from bloodjax.models.head import Head, Network
from bloodjax.models.mobilenet import MobileNet
from bloodjax.models.resnet import ResNet
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.models.vgg import VGG
from bloodjax.training.executor import JitExecutor
from bloodjax.training.step_config import Phase, StepConfig

pytestmark = pytest.mark.smoke

# Each family with as few and as narrow blocks as it can have.
BACKBONES = {
    "convnext": functools.partial(ConvNeXt, depths=(1,), widths=(8,)),
    "densenet": functools.partial(DenseNet, depths=(1,), growth=4),
    "efficientnet": functools.partial(EfficientNet, stages=(Stage(1, 8, 4),), stem=8, features=8),
    "inception": inception.InceptionV3,
    "mobilenet": functools.partial(MobileNet, depths=(1,), widths=(8,)),
    "resnet": functools.partial(ResNet, depths=(1,), bottleneck=True, widths=(8,)),
    "simple_cnn": functools.partial(SimpleCNN, depths=(1,), widths=(8,)),
    "vgg": functools.partial(VGG, depths=(1,), norm=True, widths=(8,)),
}
CLASSES, BATCH = 3, 4


# Packages of the extras [export] and [serve], which modules of theirs import.
OPTIONAL = {"onnx", "onnxruntime", "fastapi", "starlette", "uvicorn", "python_multipart"}


def test_every_module_can_be_imported():
    root = pathlib.Path(bloodjax.__file__).parent
    commands = {path.stem for path in root.glob("*.py")}  # they define flags; see cli_test
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] != "__init__" and parts[0] not in commands:
            try:
                importlib.import_module(".".join(("bloodjax", *parts)))
            except ModuleNotFoundError as error:
                if error.name not in OPTIONAL or importlib.util.find_spec(error.name):
                    raise


def test_a_file_becomes_a_report_and_a_classifier(make_config, tmp_path):
    cells = bloodjax.load_dataset("synthetic:96", 32)
    np.savez(tmp_path / "cells.npz", images=cells.images, labels=cells.labels)
    config = make_config(
        **{
            "data.train": str(tmp_path / "cells.npz"),
            "phases.head.epochs": 0,
            "phases.finetune.epochs": 1,
        }
    )
    results = run.train(config, tmp_path / "run")
    assert (tmp_path / "run/report/index.html").stat().st_size > 10_000
    written = json.loads((tmp_path / "run/evaluate/test/metrics.json").read_text())
    assert written["n"] == results["test"]["n"] > 0
    probabilities = bloodjax.load(tmp_path / "run").predict(cells.images[:5])
    assert probabilities.shape == (5, 8)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_family_takes_a_step(name, monkeypatch):
    blocks = {"mixed_7c": inception.BLOCKS["mixed_7c"]}
    monkeypatch.setattr(inception, "BLOCKS", blocks)
    size = 75 if name == "inception" else 32
    network = Network(BACKBONES[name](), Head(CLASSES, hidden=()))
    images = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3)).astype(np.uint8)
    labels = np.arange(BATCH, dtype=np.int32) % CLASSES
    variables = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))
    config = StepConfig(network, (0.5,) * 3, (0.5,) * 3, batch_size=BATCH, augment=parse("d4"))
    executor = JitExecutor(config, jax.devices()[:1])
    phase = Phase("none", optax.sgd(0.1))
    before = jax.device_get(variables["params"])
    state, sums = executor.train(
        phase,
        1,
        executor.shard_state(TrainState.create(variables, phase.tx)),
        *executor.replicate((DeviceDataset.of(images, labels), epoch_order(0, 0, BATCH))),
        executor.replicate(np.ones(CLASSES, np.float32)),
    )
    assert np.isfinite(float(sums.loss))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, jax.device_get(state.params))
    assert np.mean(jax.tree.leaves(moved)) > 0.5
