"""What `import bloodjax` offers."""

import importlib
import inspect
import json
import logging
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import bloodjax
from bloodjax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
SILENCED = "import logging; logging.getLogger('bloodjax').setLevel(logging.WARNING)"


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def quiet():
    """Nothing is printed by the face's functions."""
    logging.getLogger("bloodjax").setLevel(logging.WARNING)


def test_the_import_brings_no_heavy_library():
    heavy = ("jax", "numpy", "flax", "rich", "absl", "ml_collections", "matplotlib", "sklearn")
    code = f"import bloodjax, sys; print([name for name in {heavy} if name in sys.modules])"
    assert python(code) == "[]\n"


def test_the_import_takes_less_than_a_second():
    code = "import time; t = time.perf_counter(); import bloodjax; print(time.perf_counter() - t)"
    assert float(python(code)) < 1.0


def test_every_name_is_there_documented_and_listed():
    assert set(bloodjax.__all__) <= set(dir(bloodjax))
    for name in bloodjax.__all__:
        found = getattr(bloodjax, name)
        assert isinstance(found, str) or inspect.getdoc(found), name
    with pytest.raises(AttributeError, match="'bloodjax' has no attribute 'nope'"):
        _ = bloodjax.nope


def test_type_checkers_see_every_name():
    assert (ROOT / "bloodjax/py.typed").exists()
    source = (ROOT / "bloodjax/__init__.py").read_text("utf-8")
    checked = source[source.index("if TYPE_CHECKING:") : source.index("__version__")]
    for name in bloodjax.__all__:
        assert (
            f"\ndef {name}(" in source or f"import {name}\n" in checked or name in ("__version__",)
        )


def test_the_module_of_a_command_does_not_hide_the_function():
    for name in ("evaluate", "list_models"):
        code = (
            f"import bloodjax, importlib, inspect; import bloodjax.{name}\n"
            f"from bloodjax import {name}\n"
            f"module = importlib.import_module('bloodjax.{name}')\n"
            f"same = bloodjax.{name} is {name}\n"
            f"print(inspect.isfunction({name}), same, module.__name__)"
        )
        assert python(code) == f"True True bloodjax.{name}\n"


@pytest.mark.parametrize("name", ["evaluate", "list_models"])
def test_the_module_of_a_command_runs(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", f"bloodjax.{name}", "--help"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_old_config_files_find_the_settings():
    from bloodjax import config, settings

    assert settings is config


def test_a_config_is_changed_trained_evaluated_and_used(tmp_path, quiet, capfd):
    config = bloodjax.get_config("quickstart")
    config.update_from_flattened_dict(
        {
            "data.train": "synthetic:80",
            "data.image_size": 32,
            "batch_size": 16,
            "phases.finetune.epochs": 1,
            "evaluation.bootstrap": 20,
            "model.name": "simple_cnn",
        }
    )
    workdir = tmp_path / "run"
    trained = bloodjax.train(config, workdir)
    assert trained["test"] == json.loads((workdir / "evaluate/test/metrics.json").read_text())
    scored = bloodjax.evaluate(workdir, "synthetic:80")
    assert scored["confusion_matrix"] == trained["test"]["confusion_matrix"]
    out = tmp_path / "out"
    other = bloodjax.evaluate(
        str(workdir), "synthetic:24", out=str(out), corruptions="jpeg_compression:1"
    )
    assert other["n"] == 24
    assert other["corruptions"] == json.loads((out / "corruptions.json").read_text())
    images = bloodjax.load_dataset("synthetic:16", image_size=32).images
    classifier = bloodjax.load(workdir)
    probabilities = classifier.predict(np.asarray(images[:]))
    assert probabilities.shape == (16, len(classifier.classes))
    # The level silences lines and bar.
    assert capfd.readouterr() == ("", "")


# First words of the lines of `evaluate`: on its data, the result, what is referred, the folder.
STATED = ["data:", "8", "left", *["synthetic-24:"] * 3, "written"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("before", "shown"), [("", True), pytest.param(SILENCED, False, marks=pytest.mark.slow)]
)
def test_progress_is_shown_unless_it_is_silenced(trained, tmp_path, before, shown):
    call = f"bloodjax.evaluate({str(trained)!r}, 'synthetic:24', out={str(tmp_path)!r})"
    code = f"import bloodjax\n{before}\n{call}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    lines = done.stderr.splitlines()
    assert [line.split()[0] for line in lines] == (STATED if shown else [])


def test_mistakes_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="did you mean --config=quickstart"):
        bloodjax.get_config("quikstart")
    with pytest.raises(UserError, match="did you mean --config=quickstart"):
        bloodjax.train("quikstart", tmp_path)
    with pytest.raises(UserError, match=r"config\.batch_size is 0, expected"):
        bloodjax.train({"batch_size": 0}, tmp_path)
    with pytest.raises(UserError, match="no run is here"):
        bloodjax.evaluate(tmp_path, "synthetic:8")
    with pytest.raises(UserError, match="no such file or folder"):
        bloodjax.load_dataset(tmp_path / "nope.npz")
    with pytest.raises(UserError, match="--images=a: only a table has its images elsewhere"):
        bloodjax.load_dataset("synthetic:8", images="a")


def test_an_empty_path_is_not_the_current_folder(trained, tmp_path, monkeypatch):
    """It is what an environment variable gives that is not set."""
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: bloodjax.train("quickstart", ""),
        lambda: bloodjax.load(""),
        lambda: bloodjax.evaluate("", "synthetic:8"),
        lambda: bloodjax.evaluate(trained, ""),
        lambda: bloodjax.load_dataset(""),
    ):
        with pytest.raises(UserError, match="is empty, expected"):
            call()
    assert not list(tmp_path.iterdir())


def test_names_come_from_where_they_are_defined():
    for name, module in bloodjax._ELSEWHERE.items():
        assert getattr(bloodjax, name) is getattr(importlib.import_module(module), name)
