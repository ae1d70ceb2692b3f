"""A folder for the Hub, of a network with random weights and a workdir written by hand."""

import dataclasses
import importlib.metadata
import json
import pathlib
import re
import shutil
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest

import bloodjax
from bloodjax.augment.tta import TTAConfig
from bloodjax.data import fingerprint, splits
from bloodjax.data import images as images_lib
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError
from bloodjax.evaluation import calibration, classifier, referral
from bloodjax.evaluation.referral import Referral
from bloodjax.exporting import exporter, hub_folder
from bloodjax.exporting.bundle import Bundle, Vectors, Weights
from bloodjax.metrics.calibration import Calibration
from bloodjax.pretrained.load import load_weights
from bloodjax.training import factory, saved_splits

CELLS = render.render_dataset(24, 32, seed=0)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The files of a run that an export reads, but for its checkpoints."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    (folder / "evaluate/test").mkdir(parents=True)
    source = {"spec": "synthetic:24", "fingerprint": "synthetic:24"}
    names = {"train": CELLS.names[:12], "validation": CELLS.names[12:18], "test": CELLS.names[18:]}
    content = {
        "seed": 0,
        "sources": dict.fromkeys(names, source),
        "parts": {split: list(found) for split, found in names.items()},
        "classes": list(CELLS.classes),
        "pixels": {"train": fingerprint.to_text(fingerprint.of_images(CELLS.images[:12]))},
    }
    (folder / "splits.json").write_text(json.dumps(content))
    assert splits.load(folder / "splits.json")["parts"]["test"] == list(names["test"])
    each = {"recall": 0.5, "recall_ci95": [0.25, 0.75], "precision": 0.5, "support": 1}
    metrics = {
        "n": 6,
        "accuracy": 0.5,
        "f1_macro": 0.4375,
        "ece": 0.125,
        "nll": 1.25,
        "ci95": {"accuracy": [0.25, 0.75], "f1_macro": [0.125, 0.625]},
        "per_class": dict.fromkeys(CELLS.classes, each),
        "calibration": {"method": "temperature", "ece_before": 0.375, "nll_before": 2.5},
        "selective": {
            "operating_point": {
                "threshold": 0.9,
                "coverage": 0.975,
                "error": 0.004,
                "error_ci95": [0.001, 0.009],
            }
        },
        "rejection": {"method": "mahalanobis", "threshold": 3.0, "rejected": 0.0125},
    }
    (folder / "evaluate/test/metrics.json").write_text(json.dumps(metrics))
    scaled = Calibration("temperature", 0.5)
    calibration.write(folder, {"default": scaled, "none": scaled}, {})
    referral.write(folder, Referral(0.005, 0.9, 6))
    return folder


@pytest.fixture(scope="module")
def bundle(workdir, make_config):
    """The bundle of the run, with the folders of its sources and weights in its config."""
    config = make_config(
        **{
            "model.name": "simple_cnn_050",
            "data.train": "/home/jane/patients/cells.zip",
            "data.test": "/home/jane/test.zip",
            "dtype": "float32",
        }
    )
    content = config.to_dict()
    content["model"]["weights"] = content["model"]["source"]["location"] = "/home/jane/net.h5"
    content["model"]["source"] |= {"licence": "mit", "citation": "A et al., 2020"}
    config = bloodjax.config.validate(content)
    variables = factory.variables(config, len(CELLS.classes))
    model = classifier.with_files_of(workdir, config, CELLS.classes, variables, 7)
    images = CELLS.images[12:18]
    probabilities = model.predict(images, "none")
    return Bundle(
        classifier=model,
        views=TTAConfig("none", "probabilities"),
        tta="none",
        calibration=model.calibration("none"),
        weights=Weights("net.h5", "mit", "A et al., 2020"),
        checked_on="validation",
        images=images,
        labels=CELLS.labels[12:18],
        vectors=Vectors(images, probabilities, images[:1], probabilities[:1]),
        metrics={"test": {"n": 6, "accuracy": {"value": 0.5, "low": 0.25, "high": 0.75}}},
    )


@pytest.fixture(scope="module")
def exported(bundle, workdir, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "my-cells"
    hub_folder.check(out)
    hub_folder.write(bundle, workdir, out, formats=())
    return out


def test_loads_with_the_same_answers(exported, bundle):
    model = bloodjax.load(exported)
    assert model.classes == CELLS.classes
    assert (model.step, model.referral) == (7, Referral(0.005, 0.9, 6))
    found, expected = model.answer(CELLS.images), bundle.classifier.answer(CELLS.images)
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    assert (found.why, found.refer.tolist()) == (expected.why, expected.refer.tolist())
    plain = model.predict(CELLS.images, calibrated=False)
    assert np.abs(plain - found.probabilities).max() > 0.01  # the calibration came along


def test_training_images_are_recognised_without_their_names(exported):
    model = bloodjax.load(exported)
    name, found = saved_splits.select(
        model.config, exported / "splits.json", model.classes, "synthetic:24", None
    )
    assert (name, len(found)) == ("synthetic-24", 24)
    runs = {exported: model.config}
    mask, unknown = saved_splits.trained_on(
        runs, model.classes, found, model.config, lambda config: found
    )
    assert unknown == []
    np.testing.assert_array_equal(mask, np.arange(24) < 12)


def test_its_weights_are_a_start_for_training(exported, bundle):
    weights = load_weights("simple_cnn_050", str(exported))
    assert (weights.pretrained_cfg.licence, weights.pretrained_cfg.size) == ("mit", 32)
    found = weights.backbone()["params"]["backbone"]
    theirs = bundle.classifier.predictor.variables["params"]["backbone"]
    jax.tree.map(np.testing.assert_array_equal, found, theirs)


def test_the_card_has_valid_metadata(exported):
    card = huggingface_hub.ModelCard.load(exported / "README.md")
    data = card.data
    assert (data.library_name, data.pipeline_tag) == ("bloodjax", "image-classification")
    assert (data.license, data.base_model) == ("mit", None)
    assert "simple_cnn_050" in data.tags
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"accuracy": 0.5, "f1": 0.4375}
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_the_card_states_data_metrics_use_and_limits(exported):
    text = (exported / "README.md").read_text("utf-8")
    for part in (
        "| Accuracy | 0.5000 | 0.2500 to 0.7500 |",
        "from 0.3750 to 0.1250",
        "answers 97.50 % of the images, and 0.40 % of these answers are wrong (0.10 % to 0.90 %)",
        "there is no detector of images unlike the training cells",
        "| all | 12 | 6 | 6 |",
        "not a medical device",
        "A program drew the training images",
        "weights `net.h5`, which are published under mit. Paper: A et al., 2020",
        "| `model.safetensors` |",
    ):
        assert part in text
    numbers = np.bincount(CELLS.labels[:12], minlength=8)
    assert f"| {CELLS.classes[0]} | {numbers[0]} | " in text


def test_no_path_of_this_machine_is_in_it(exported, workdir):
    for path in exported.iterdir():
        content = path.read_bytes()
        for private in (b"/home/jane", b"patients", str(workdir.parent).encode()):
            assert private not in content, path.name
    config = json.loads((exported / "config.json").read_text("utf-8"))
    assert config["run"]["data"]["train"] == "cells.zip"
    assert config["run"]["model"]["source"]["location"] == "net.h5"
    assert config["id2label"]["0"] == CELLS.classes[0]
    assert config["referral"]["threshold"] == 0.9
    assert config["calibration"] == Calibration("temperature", 0.5).to_dict()


def test_without_calibration_the_fitted_files_stay_behind(bundle, workdir, tmp_path):
    out = tmp_path / "plain"
    plain = bundle.classifier.predict(bundle.vectors.images, "none", calibrated=False)
    vectors = Vectors(bundle.vectors.images, plain, bundle.vectors.large, plain[:1])
    uncalibrated = dataclasses.replace(bundle, vectors=vectors)
    hub_folder.write(uncalibrated, workdir, out, calibrated=False, formats=())
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "splits.json",
    ]
    assert bloodjax.load(out).referral is None
    assert json.loads((out / "config.json").read_text("utf-8"))["referral"] is None
    card = (out / "README.md").read_text("utf-8")
    assert "not calibrated. The metrics above are of calibrated ones." in card
    assert "there is no threshold of confidence" in card


def test_nothing_is_written_if_the_answers_differ(bundle, workdir, tmp_path):
    wrong = Vectors(
        bundle.vectors.images,
        bundle.vectors.probabilities + np.float32(1e-4),
        bundle.vectors.large,
        bundle.vectors.large_probabilities,
    )
    changed = dataclasses.replace(bundle, vectors=wrong)
    with pytest.raises(UserError, match=r"differ by 0.0001 .* so nothing was written"):
        hub_folder.write(changed, workdir, tmp_path / "out", formats=())
    assert not list(tmp_path.iterdir())


def test_a_wrong_place_is_refused_before_the_run_is_read(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there: exists already, expected a new folder"):
        hub_folder.check(tmp_path / "there")
    with pytest.raises(UserError, match="there is no folder"):
        hub_folder.check(tmp_path / "no/out")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", None, "no such file"),
        ("model.safetensors", b"x", "truncated or not a safetensors file"),
        ("config.json", b'{"library_name": "bloodjax"}', r"config.json: is damaged \(KeyError"),
        ("calibration.json", b"{}", "calibration.json: is damaged"),
    ],
)
def test_a_damaged_folder_is_one_line(exported, tmp_path, file, content, message):
    copy = tmp_path / "copy"
    shutil.copytree(exported, copy)
    if content is None:
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        bloodjax.load(copy)
    assert "\n" not in str(caught.value)


def test_weights_of_another_network_are_refused(exported, tmp_path):
    copy = pathlib.Path(shutil.copytree(exported, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["run"]["model"]["name"] = "simple_cnn"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="contains weights of simple_cnn_050, expected simple_cnn"):
        bloodjax.load(copy)


@pytest.fixture(scope="module")
def programs(bundle, workdir, tmp_path_factory):
    """A folder with the classifier as programs, and an image; the formats, and its answer."""
    out = tmp_path_factory.mktemp("out") / "programs"
    formats = ["stablehlo"]
    formats += [] if exporter.missing_packages("onnx") else ["onnx"]
    hub_folder.write(bundle, workdir, out, formats=formats)
    large = render.render_dataset(8, 80, seed=5).images[0][:, :60]
    (out / "cell.png").write_bytes(images_lib.encode_png(large))
    answer = bundle.classifier.predict([large], "none")[0]
    return out, formats, answer


# What each code of the card starts with -> packages that it may not need.
CODES = {
    "Without bloodjax, in jax": ("bloodjax", "flax", "optax", "orbax"),
    "In onnxruntime": ("bloodjax", "flax", "jax", "onnx"),
    "The weights alone": ("bloodjax", "flax", "jax"),
}
BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())
"""


def code_of(folder, start):
    """The code after the line of the model card that starts with `start`."""
    text = (folder / "README.md").read_text("utf-8")
    found = re.search(rf"^{re.escape(start)}[^\n]*:\n\n```python\n(.*?)```", text, re.M | re.S)
    assert found, start
    return found[1]


def check_codes(folder, start, answer, python, prelude=""):
    """Runs a code of the card, and checks what it prints."""
    done = subprocess.run(
        [python, "-c", prelude + code_of(folder, start)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    if start == "The weights alone":
        assert last.startswith(f"simple_cnn_050 {list(CELLS.classes)}")
        return
    name, value = last.split()
    assert name == CELLS.classes[answer.argmax()]
    assert abs(float(value) - answer.max()) < 1e-5


@pytest.mark.parametrize("start", CODES)
def test_the_code_of_the_card_runs_where_bloodjax_cannot_be_imported(programs, start):
    folder, formats, answer = programs
    if start == "In onnxruntime" and "onnx" not in formats:
        pytest.skip("needs the extra [export]")
    check_codes(folder, start, answer, sys.executable, BLOCKER.format(blocked=CODES[start]))


def test_the_code_in_the_docs_is_that_of_the_card(programs):
    folder, formats, _ = programs
    docs = (pathlib.Path(__file__).parents[2] / "docs/hub.md").read_text("utf-8")
    for start in CODES:
        if start != "In onnxruntime" or "onnx" in formats:
            assert code_of(folder, start) in docs, start


@pytest.mark.full
@pytest.mark.parametrize("file_format", ["stablehlo", "onnx"])
def test_the_script_beside_a_program_runs_where_bloodjax_cannot_be_imported(programs, file_format):
    folder, formats, _ = programs
    if file_format not in formats:
        pytest.skip("needs the extra [export]")
    script = folder / f"model.{file_format}.check.py"
    prelude = BLOCKER.format(blocked=("bloodjax", "flax", "onnx"))
    run = f"import runpy\nsys.argv = [{str(script)!r}]\nrunpy.run_path({str(script)!r})"
    done = subprocess.run([sys.executable, "-c", prelude + run], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("good")


def test_the_programs_are_named_in_the_card_without_a_path_of_this_machine(programs):
    folder, formats, _ = programs
    text = (folder / "README.md").read_text("utf-8")
    for file_format in formats:
        names = {path.name for path in folder.glob(f"model.{file_format}*")}
        assert len(names) == 4
        assert all(f"| `{name}` |" in text for name in names)
        source = str(pathlib.Path(bloodjax.__file__).parent).encode()
        for name in (f"model.{file_format}", f"model.{file_format}.json"):
            content = (folder / name).read_bytes()
            for private in (b"/home/jane", b"site-packages", source, str(folder.parent).encode()):
                assert private not in content, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "packages", "script"),
    [
        (
            "Without bloodjax, in jax",
            ["jax", "flatbuffers", "numpy", "pillow"],
            "model.stablehlo.check.py",
        ),
        ("In onnxruntime", ["onnxruntime", "numpy", "pillow"], "model.onnx.check.py"),
        ("The weights alone", ["safetensors", "numpy"], None),
    ],
)
def test_in_a_fresh_environment(programs, tmp_path, start, packages, script):
    """Makes an environment with a few packages only; pip downloads them."""
    folder, formats, answer = programs
    if start == "In onnxruntime" and "onnx" not in formats:
        pytest.skip("needs the extra [export]")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "fresh"], check=True)
    python = tmp_path / "fresh/bin/python"
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in packages]
    pip = [python, "-m", "pip", "install", "--quiet", *pinned]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install {', '.join(pinned)}: {done.stderr.splitlines()[-1]}")
    for name in ("bloodjax", "flax"):
        found = subprocess.run([python, "-c", f"import {name}"], cwd=folder, capture_output=True)
        assert found.returncode, f"{name} can be imported"
    check_codes(folder, start, answer, python)
    if script:
        done = subprocess.run([python, folder / script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
