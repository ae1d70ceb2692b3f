"""The files beside an exported one: metadata, test vectors, and a script that checks them."""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Mapping

import numpy as np

from bloodjax.errors import UserError
from bloodjax.exporting.bundle import Bundle, as_json
from bloodjax.io import files

METADATA, VECTORS, SCRIPT = ".json", ".vectors.npz", ".check.py"

# The scripts import the format's runtime and NumPy only.
_SCRIPT = '''\
"""Checks that {name} gives the probabilities of its test vectors. Needs {needs}.

python {name}{script} [IMAGE ...]   (with Pillow: also classifies images)
"""

import json
import pathlib
import sys

import numpy as np
{imports}

file = pathlib.Path(__file__).resolve().with_name({name!r})
metadata = json.loads(file.with_name(file.name + {metadata!r}).read_text("utf-8"))
vectors = np.load(file.with_name(file.name + {vectors!r}), allow_pickle=False)


{load}

differences = [
    np.abs(run(vectors[images]) - vectors[probabilities]).max()
    for images, probabilities in {pairs}
]
largest = float(np.max(differences))  # not a number if any probability is none
allowed = metadata["tolerance"]
good = largest <= allowed
print(f"largest difference {{largest:.1e}}, allowed {{allowed:.0e}}: {{'good' if good else 'BAD'}}")

for path in sys.argv[1:]:
    from PIL import Image, ImageOps

    with open(path, "rb") as opened:
        head = opened.read(25)
    # Pillow calls a PNG of 16 bits per channel RGB, too; its header has the number of bits.
    deep = head[:8] == b"\\x89PNG\\r\\n\\x1a\\n" and head[24:] > b"\\x08"
    image = Image.open(path)
    deep = deep or max(getattr(image, "tag_v2", {{}}).get(258, (8,))) > 8  # of a TIFF
    image = ImageOps.exif_transpose(image)
    if deep or image.mode not in ("L", "P", "RGB") or "transparency" in image.info:
        found = image.mode + " of 16 bits" * deep
        sys.exit(f"{{path}}: expected 8 bits per channel without transparency, not {{found}}")
    image = image.convert("RGB")
{fit}    answer = run(np.asarray(image)[None])[0]
    print(f"{{path}}: {{metadata['classes'][answer.argmax()]}} {{answer.max():.3f}}")

sys.exit(0 if good else 1)
'''
_STABLEHLO = {
    "needs": "jax, flatbuffers and numpy",
    "imports": "from jax import export",
    "load": """\
program = export.deserialize(bytearray(file.read_bytes()))


def run(images):
    return np.asarray(program.call(images)["probabilities"])
""",
    "pairs": '(("images", "probabilities"), ("large", "large_probabilities"))',
    "fit": "",
}
_ONNX = {
    "needs": "onnxruntime and numpy",
    "imports": "import onnxruntime",
    "load": """\
session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def run(images):
    return session.run(["probabilities"], {"images": images})[0]
""",
    "pairs": '(("images", "probabilities"),)',
    # As `data.images.resize`; the file takes squares of one size.
    "fit": """\
    size, (width, height) = metadata["image_size"], image.size
    box = (0, 0, width, height)
    if metadata["fit"] == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    elif metadata["fit"] != "squash" and image.size != (size, size):
        sys.exit(f"{path}: make it a square of {size} pixels first, with fit={metadata['fit']}")
    image = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
""",
}
_FORMATS = {"stablehlo": _STABLEHLO, "onnx": _ONNX}


def names(out: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """The exported file and those beside it."""
    return (out, *(out.with_name(out.name + end) for end in (METADATA, VECTORS, SCRIPT)))


def check_new(out: pathlib.Path) -> None:
    """Refuses to replace files.

    Raises:
      UserError: One of them exists, or their folder cannot be written to.
    """
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}")
    files.make_folder(out.parent)  # an error if it is read-only
    for path in names(out):
        if path.exists() or path.is_symlink():
            raise UserError(f"--out={out}: {path} exists, expected a new name")


def write(
    out: pathlib.Path,
    content: bytes,
    file_format: str,
    bundle: Bundle,
    metadata: Mapping[str, object],
) -> None:
    """Writes an exported file and those beside it; all of them, or none after an error.

    Args:
      out: The file.
      content: Its content.
      file_format: "stablehlo" or "onnx".
      bundle: The classifier, for its test vectors.
      metadata: Content of the JSON file; `tolerance` is the largest difference that the script
        allows.
    """
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=bundle.vectors.images,
        probabilities=bundle.vectors.probabilities,
        large=bundle.vectors.large,
        large_probabilities=bundle.vectors.large_probabilities,
        classes=np.array(bundle.classes),
    )
    contents = (content, as_json(metadata), buffer.getvalue(), script(out.name, file_format))
    written: list[pathlib.Path] = []
    try:
        # The exported file comes last: where it is, the others are.
        for path, each in reversed(list(zip(names(out), contents, strict=True))):
            written.append(path)
            files.atomic_write(path, each)
    except BaseException:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        raise


def script(name: str, file_format: str) -> str:
    """The text of the script that checks the file `name`."""
    return _SCRIPT.format(
        name=name, script=SCRIPT, metadata=METADATA, vectors=VECTORS, **_FORMATS[file_format]
    )
