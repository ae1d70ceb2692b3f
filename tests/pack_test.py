"""Tests of bloodjax/pack.py, and that a run on what it packs is the run on what was packed."""

import json
import subprocess

import jax
import numpy as np
import pytest

from bloodjax import cross_validation, run
from bloodjax.checkpoints.manager import Checkpoints
from bloodjax.data import packing, sources
from bloodjax.data.lazy import LazyImages
from bloodjax.evaluation import evaluator
from bloodjax.training import factory, input_pipeline, metric_writer, saved_splits

from .trees import assert_trees_equal


def last_variables(workdir, config):
    shapes = jax.eval_shape(lambda: factory.variables(config, 8))
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        return jax.device_get(checkpoints.restore_variables(checkpoints.latest_step, shapes))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The cells that the fixture `trained` was trained on."""
    out = tmp_path_factory.mktemp("packed") / "set"
    packing.pack(packing.load_source("synthetic:160", 32), out, as_pixels=True, shards=3)
    return out


def assert_same_run(config, workdir, trained):
    found, expected = last_variables(workdir, config), last_variables(trained, config)
    assert_trees_equal(found, expected)
    for one, other in zip(
        metric_writer.read_history(workdir), metric_writer.read_history(trained), strict=True
    ):
        assert one["validation"] == other["validation"]
        assert one["train"]["loss"] == other["train"]["loss"]


@pytest.mark.full
def test_streamed_shards_give_the_same_run_and_metrics(make_config, packed, trained, tmp_path):
    config = make_config(**{"data.train": str(packed), "data.on_device": "never"})
    run.train(config, tmp_path)
    assert_same_run(config, tmp_path, trained)
    for name in ("evaluate/test/predictions.csv", "baseline.json"):
        assert (tmp_path / name).read_text() == (trained / name).read_text()
    metrics = [
        json.loads((w / "evaluate/test/metrics.json").read_text()) for w in (tmp_path, trained)
    ]
    assert [result.pop("source")["spec"] for result in metrics] == [str(packed), "synthetic:160"]
    assert metrics[0] == metrics[1]
    audits = [json.loads((w / "audit/audit.json").read_text()) for w in (tmp_path, trained)]
    assert audits[0] == audits[1]
    saved, classes = tmp_path / "splits.json", sources.load(str(packed), 32).classes
    name, test = saved_splits.select(config, saved, classes, str(packed), None)
    assert (name, isinstance(test.images, LazyImages)) == ("test", True)
    assert saved_splits.recall(config, saved, classes, "test").names == test.names


@pytest.mark.full
def test_shards_on_the_device_give_the_same_run(
    make_config, packed, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluator, "finish", lambda *_: {})
    config = make_config(**{"data.train": str(packed), "data.on_device": "always"})
    run.train(config, tmp_path)
    assert_same_run(config, tmp_path, trained)


def test_folds_are_of_lazy_images(make_config, packed, tmp_path):
    prepared = input_pipeline.prepare_splits(
        make_config(**{"data.train": str(packed)}), tmp_path, resumes=False
    )
    pool = cross_validation._pool(prepared)
    assert isinstance(pool.images, LazyImages)
    assert pool.names == prepared.train.names + prepared.validation.names
    n = len(prepared.train)
    np.testing.assert_array_equal(pool.images[n], prepared.validation.images[0])


def test_the_command(command, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3)).astype(np.uint8)
    np.savez(tmp_path / "cells.npz", images=pixels, labels=np.arange(8) % 2)
    arguments = (f"--data={tmp_path / 'cells.npz'}", f"--out={tmp_path / 'out'}", "--classes=b,a")
    done = subprocess.run(**command("pack", *arguments, "--shards=2"), capture_output=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"data: {tmp_path / 'cells.npz'} (npz of images and labels")
    assert lines[1].startswith("2 classes: b 4, a 4")
    assert f"8 images packed; --data={tmp_path / 'out'} reads them" in done.stderr
    dataset = sources.load(str(tmp_path / "out"), 24)
    np.testing.assert_array_equal(dataset.images[:], pixels)
    assert dataset.classes == ("b", "a")
    again = subprocess.run(**command("pack", *arguments), capture_output=True)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.splitlines()[-1].endswith("expected a new or an empty folder")
    assert "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data=synthetic:8"], "synthetic images have no native size"),
        (["--data=nowhere.npz"], "nowhere.npz: no such file or folder"),
        (["--data=tfds:cells"], "bloodjax does not download it"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(command, tmp_path, flags, message):
    out = tmp_path / "out"
    done = subprocess.run(**command("pack", *flags, f"--out={out}"), capture_output=True)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert not out.exists()
