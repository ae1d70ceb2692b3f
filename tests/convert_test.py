"""Tests of bloodjax/convert.py: the command, as a user runs it."""

import subprocess

import jax
import pytest

import bloodjax
from bloodjax import models
from bloodjax.pretrained import bloodjax_file, load, readers, safetensors_file
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg

from .trees import assert_trees_equal

NAME = "mobilenetv1_025"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    _, variables = models.random_model(NAME, 5)
    path = tmp_path_factory.mktemp("weights") / "in.safetensors"
    bloodjax_file.write(
        path, NAME, 5, PretrainedCfg("hf:a/b@c", "timm", "timm", licence="mit"), variables
    )
    return path, variables


def run(command, *arguments):
    return subprocess.run(**command("convert", *arguments), capture_output=True)


@pytest.mark.full
def test_writes_a_file_that_training_takes(command, weights, tmp_path):
    out = tmp_path / "out.safetensors"
    done = run(
        command, f"--model={NAME}", f"--weights={weights[0]}", f"--out={out}", "--variant=keras"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{NAME}, 5 classes, variant keras: written to {out}\n"
    found = load.load_weights(NAME, str(out))
    assert (found.pretrained_cfg.licence, found.pretrained_cfg.variant) == ("mit", "keras")
    _, variables = bloodjax.create_model(NAME, str(out), 5)
    assert_trees_equal(variables, jax.device_get(weights[1]))


@pytest.mark.full
def test_an_older_command_line_is_understood(command, weights, tmp_path):
    out = tmp_path / "out.safetensors"
    old = ("--model=mobilenet_v1_025", "--flavour=keras")
    done = run(command, *old, f"--weights={weights[0]}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "--flavour was renamed to --variant; the old name still works\n"
        f"{NAME}, 5 classes, variant keras: written to {out}\n"
    )


@pytest.mark.full
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "mobilenetv1_25"}, "unknown model 'mobilenetv1_25': did you mean"),
        ({"weights": "nowhere.pth"}, "'nowhere.pth': no such file"),
        ({"out": "a.npz"}, "--out=a.npz: suffix '.npz', expected .safetensors"),
        ({"out": "no/where/a.safetensors"}, "--out=no/where/a.safetensors: no folder no/where"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(command, weights, tmp_path, changes, expected):
    flags = {"model": NAME, "weights": str(weights[0]), "out": str(tmp_path / "a.safetensors")}
    flags |= changes
    done = run(command, *(f"--{key}={value}" for key, value in flags.items()))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {expected}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-100])


def _pickled(path):
    import pickle

    path.write_bytes(pickle.dumps(print))


def _renamed(path):
    tensors = readers.read_tensors(path)
    arrays = dict(tensors.arrays)
    arrays["params/head/other"] = arrays.pop("params/head/logits/bias")
    safetensors_file.write(path, arrays, tensors.metadata)


@pytest.mark.full
@pytest.mark.parametrize(
    ("damage", "suffix", "expected"),
    [
        (_truncated, ".safetensors", "truncated or not a safetensors file"),
        (_pickled, ".pth", "expected"),
        (_renamed, ".safetensors", "2 unexpected (params/head/logits/kernel, params/head/other)"),
    ],
)
def test_damaged_weights_are_one_line(command, weights, tmp_path, damage, suffix, expected):
    bad, out = (tmp_path / f"bad{suffix}"), tmp_path / "out.safetensors"
    bad.write_bytes(weights[0].read_bytes())
    damage(bad)
    done = run(command, f"--model={NAME}", f"--weights={bad}", f"--out={out}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {bad}: ")
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1
    assert not out.exists()
