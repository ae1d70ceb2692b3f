"""Python code for a model card: how an exported folder is used, with bloodjax and without."""

from __future__ import annotations

from collections.abc import Collection, Mapping

_WITH_BLOODJAX = """
import bloodjax
import numpy as np
from PIL import Image

model = bloodjax.load(".")  # the folder with this file
image = np.asarray(Image.open("cell.png").convert("RGB"))
answer = model.answer([image])
print(model.classes[answer.predicted[0]], answer.confidence[0], answer.why[0])
"""
_IN_JAX = """
import json

import numpy as np
from jax import export
from PIL import Image

with open("config.json", encoding="utf-8") as file:
    classes = json.load(file)["classes"]
with open("model.stablehlo", "rb") as file:
    program = export.deserialize(bytearray(file.read()))
image = np.asarray(Image.open("cell.png").convert("RGB"))
probabilities = np.asarray(program.call(image[None])["probabilities"])[0]
print(classes[probabilities.argmax()], probabilities.max())
"""
_IN_ONNXRUNTIME = """
import json

import numpy as np
import onnxruntime
from PIL import Image

with open("config.json", encoding="utf-8") as file:
    config = json.load(file)
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
image, size = Image.open("cell.png").convert("RGB"), config["image_size"]
SQUARE
probabilities = session.run(["probabilities"], {"images": np.asarray(image)[None]})[0][0]
print(config["classes"][probabilities.argmax()], probabilities.max())
"""
# `fit` -> how Pillow makes an image a square of `size` pixels, as `data.images.resize`; of another
# `fit` the code takes squares only.
_SQUARES = {
    "crop": """
side = min(image.size)
left, top = ((length - side) / 2 for length in image.size)
box = (left, top, left + side, top + side)
image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
""",
    "squash": """
image = image.resize((size, size), Image.Resampling.BICUBIC)
""",
}
_SQUARED_BEFORE = """
if image.size != (size, size):
    raise SystemExit(f"make the image {size} x {size} pixels first, with fit={config['fit']}")
"""
_WEIGHTS = """
import json

from safetensors.numpy import load_file

with open("config.json", encoding="utf-8") as file:
    config = json.load(file)
variables = load_file("model.safetensors")  # "params/backbone/..." -> float32 array
print(config["architecture"], config["classes"], sum(x.size for x in variables.values()))
"""
_TRAINING = """
import bloodjax

config = bloodjax.get_config("quickstart")
config.model.name, config.model.weights = "NETWORK", "."  # the folder with this file
config.data.train = "cells.zip"
"""


def snippets(metadata: Mapping, files: Collection[str]) -> dict[str, str]:
    """Python code by heading, to be run in the folder with the files and an image, `cell.png`.

    Args:
      metadata: Content of `config.json`.
      files: Names of the files in the folder.
    """
    shown = {"With bloodjax": _WITH_BLOODJAX}
    if "model.stablehlo" in files:
        shown["Without bloodjax, in jax; `pip install jax flatbuffers pillow`"] = _IN_JAX
    if "model.onnx" in files:
        square = _SQUARES.get(metadata["fit"], _SQUARED_BEFORE)
        onnx = _IN_ONNXRUNTIME.replace("SQUARE", square.strip())
        shown["In onnxruntime; `pip install onnxruntime pillow`"] = onnx
    shown["The weights alone; `pip install safetensors numpy`"] = _WEIGHTS
    shown["As a start for training"] = _TRAINING.replace("NETWORK", metadata["network"])
    return shown
