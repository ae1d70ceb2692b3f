"""The script beside an exported file, with a runtime that stands in for onnxruntime."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bloodjax.exporting import companions

from ..data.image_encodings import png16

SIZE = 8
# Answers the second class where the upper half of the image is bright.
RUNTIME = """
import os
import numpy as np

class InferenceSession:
    def __init__(self, path, providers):
        pass

    def run(self, outputs, inputs):
        bright = inputs["images"][:, :4].mean((1, 2, 3)) / 255
        answers = np.stack([1 - bright, bright], -1).astype(np.float32)
        return [np.where("BROKEN" in os.environ, np.nan, answers)]
"""


@pytest.fixture
def script(tmp_path):
    """Runs the script of a run with a `fit` on images; returns the finished process."""
    (tmp_path / "onnxruntime.py").write_text(RUNTIME)
    name = "cells.onnx"
    (tmp_path / f"{name}.check.py").write_text(companions.script(name, "onnx"))
    images = np.full((2, SIZE, SIZE, 3), 51, np.uint8)
    answers = np.array([[0.8, 0.2]] * 2, np.float32)
    np.savez(tmp_path / f"{name}.vectors.npz", images=images, probabilities=answers)

    def run(*arguments, fit="crop", **environment):
        content = {"tolerance": 1e-4, "classes": ["dark", "bright"], "image_size": SIZE, "fit": fit}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return subprocess.run(
            [sys.executable, f"{name}.check.py", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)} | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_probabilities_that_are_no_numbers_are_not_good(script):
    assert script().returncode == 0
    done = script(BROKEN="1")
    assert done.returncode == 1
    assert "largest difference nan, allowed 1e-04: BAD" in done.stdout


def test_an_image_is_turned_as_a_viewer_shows_it(script, tmp_path):
    pixels = np.zeros((SIZE, SIZE), np.uint8)
    pixels[:, : SIZE // 2] = 255  # at the left, which EXIF says is the top
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    done = script("turned.png")
    assert done.returncode == 0, done.stderr
    assert "turned.png: bright 1.000" in done.stdout


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "LA"])
def test_an_image_that_would_be_read_differently_is_refused(script, tmp_path, mode):
    Image.new(mode, (SIZE, SIZE)).save(tmp_path / "other.png")
    done = script("other.png")
    assert done.returncode == 1
    assert f"other.png: expected 8 bits per channel without transparency, not {mode}" in done.stderr


def test_a_png_file_of_16_bits_per_channel_is_refused(script, tmp_path):
    pixels = np.zeros((SIZE, SIZE, 3), np.uint16)
    (tmp_path / "deep.png").write_bytes(png16(pixels, colour_type=2))
    with Image.open(tmp_path / "deep.png") as image:
        assert image.mode == "RGB"
    done = script("deep.png")
    assert done.returncode == 1
    assert (
        "deep.png: expected 8 bits per channel without transparency, not RGB of 16 bits"
        in done.stderr
    )


def test_a_tiff_file_of_12_bits_per_channel_is_refused(script, tmp_path):
    tifffile = pytest.importorskip("tifffile", reason="writes TIFF files of 16 bits per channel")
    pixels = np.full((SIZE, SIZE, 3), 4000, np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", pixels, photometric="rgb")
    done = script("deep.tif")
    assert done.returncode == 1
    assert "deep.tif: expected 8 bits per channel" in done.stderr
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "usual.tif")
    assert "usual.tif: dark 1.000" in script("usual.tif").stdout


@pytest.mark.parametrize("fit", ["pad", "240px"])
def test_a_fit_that_the_script_lacks_needs_squares(script, tmp_path, fit):
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "square.png")
    Image.new("RGB", (SIZE, SIZE + 1)).save(tmp_path / "tall.png")
    assert "square.png: dark 1.000" in script("square.png", fit=fit).stdout
    done = script("tall.png", fit=fit)
    assert f"tall.png: make it a square of {SIZE} pixels first, with fit={fit}" in done.stderr


@pytest.mark.parametrize("file_format", ["stablehlo", "onnx"])
def test_the_script_is_python(file_format):
    compile(companions.script("a 'b'.file", file_format), "script", "exec")
