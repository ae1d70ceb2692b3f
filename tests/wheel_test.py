"""The package as a wheel, installed away from the repository and used in an empty folder."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKED = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built without network from a copy of the package."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKED:
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "bloodjax", source / "bloodjax", ignore=shutil.ignore_patterns("__pycache__")
    )
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, f"--wheel-dir={source}", source], check=True)
    (wheel,) = source.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs the installed command `bloodjax` in an empty folder; returns what it printed."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("empty")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={site}"]
    subprocess.run([*pip, wheel], check=True)

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, site / "bin" / "bloodjax", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(site)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return folder, run


def test_it_holds_code_templates_recipes_and_the_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "bloodjax").rglob("*") if path.is_file()]
    ours = {path.relative_to(ROOT).as_posix() for path in files if path.suffix != ".pyc"}
    assert ours <= names
    assert {"bloodjax/py.typed", "bloodjax/configs/quickstart.py"} <= names
    assert any(name.endswith(".html") for name in names)
    rest = {name.split("/")[0] for name in names - ours}
    assert len(rest) == 1
    assert rest.pop().endswith(".dist-info")


@pytest.mark.full
def test_in_an_empty_folder_it_trains_evaluates_and_predicts(installed):
    folder, run = installed
    assert "bloodjax train --config=quickstart" in run("--help")
    assert "recipes/robust" in run("configs")
    assert "simple_cnn" in run("models", "--model=simple_cnn")
    sizes = ("--config.data.image_size=32", "--config.batch_size=16")
    short = ("--config.phases.finetune.epochs=1", "--config.evaluation.bootstrap=20")
    data = "--config.data.train=synthetic:80"
    printed = run("train", "--config=quickstart", "--workdir=run", data, *sizes, *short)
    assert "\nreport: run/report/index.html\n" in printed
    assert "</html>" in (folder / "run/report/index.html").read_text("utf-8")
    run("evaluate", "--workdir", "run", "--data", "synthetic:24", "--out", "scored")
    assert json.loads((folder / "scored/metrics.json").read_text("utf-8"))["n"] == 24
    run("predict", "--workdir=run", "--input=synthetic:8", "--out=predictions.csv")
    assert len((folder / "predictions.csv").read_text("utf-8").splitlines()) == 9
    assert {path.name for path in folder.iterdir()} == {"run", "scored", "predictions.csv"}
