"""Small intact files of every format that bloodjax reads, which `fuzz` damages."""

from __future__ import annotations

import importlib.util
import io
import json
import pathlib

import h5py
import numpy as np
from PIL import Image

from benchmarks import layouts
from benchmarks.mutations import Sample, member, zip_of
from bloodjax import config as config_lib
from bloodjax import models
from bloodjax.data import fingerprint, packing, sources
from bloodjax.data.synthetic import render
from bloodjax.io import parquet
from bloodjax.pretrained import bloodjax_file, pretrained_cfg

SIDE = 24
NETWORK = "simple_cnn"
_CLASSES = 8
_COUNT = 16
_FORMATS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "gif": "GIF"}
_FORMATS |= {"ppm": "PPM", "jp2": "JPEG2000"}


def samples(folder: pathlib.Path) -> dict[str, list[Sample]]:
    """Intact files of each format; `folder` is used for temporary files."""
    cells = render.render_dataset(_COUNT, SIDE)
    images, labels = cells.images, np.arange(_COUNT) % _CLASSES
    files = [(f"c{labels[i]}/{i}.png", _image(images[i], "PNG")) for i in range(_COUNT)]
    zipped = zip_of([(member(name), content) for name, content in files])
    (folder / "cells.zip").write_bytes(zipped)
    return {
        "npz": [_challenge(images, labels), _medmnist(images, labels)],
        "zip": [{"cells.zip": zipped}],
        "image": [{f"cell.{suffix}": _image(images[0], kind)} for suffix, kind in _FORMATS.items()],
        "array_record": [_packed(folder, as_pixels) for as_pixels in (False, True)],
        "config": _configs(),
        "table": _tables(files, labels),
        "folder": [layouts.both(dict(_folder(images)))],
        "arrays": [
            {**_challenge(images, labels), layouts.LABELS: json.dumps(labels.tolist()).encode()}
        ],
        "names": [{"names.txt": b"basophil\nneutrophil"}],
        "weights": _weights(folder, np.random.default_rng(0)),
    }


def _folder(images: np.ndarray) -> list[tuple[str, bytes]]:
    classes = ("basophil", "monocyte", "ig")
    return [(f"{classes[i % 3]}/{i}.png", _image(x, "PNG")) for i, x in enumerate(images)]


def _tables(files: list[tuple[str, bytes]], labels: np.ndarray) -> list[Sample]:
    """Tables of the images in a zip: with texts, with one-hot columns, and as Parquet."""
    zipped = zip_of([(member(name), content) for name, content in files])
    rows = [
        (pathlib.PurePath(name).stem, f"c{label}", f"p{i // 2}", "train", 1 + i / 4)
        for i, ((name, _), label) in enumerate(zip(files, labels, strict=True))
    ]
    header = ("image_id", "dx", "patient", "split", "weight")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    one_hot = [
        (row[0], *(int(label == c) for c in range(_CLASSES)))
        for row, label in zip(rows, labels, strict=True)
    ]
    named = [("image", *(f"c{c}" for c in range(_CLASSES))), *one_hot]
    texts = {name: parquet.Column([str(x) for x in of], "text") for name, of in columns.items()}
    return [
        {"labels.csv": _delimited([header, *rows], ";"), layouts.IMAGES: zipped},
        {"labels.tsv": _delimited(named, "\t"), layouts.IMAGES: zipped},
        {"labels.parquet": parquet.encode(texts), layouts.IMAGES: zipped},
    ]


def _delimited(rows: list[tuple], delimiter: str) -> bytes:
    return "".join(f"{delimiter.join(map(str, row))}\n" for row in rows).encode()


def _image(image: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    return file.getvalue()


def _arrays(name: str, **arrays: np.ndarray) -> Sample:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return {name: file.getvalue()}


def _challenge(images: np.ndarray, labels: np.ndarray) -> Sample:
    classes = np.array([f"c{i}" for i in range(_CLASSES)])
    groups = np.array([f"slide{i % 4}" for i in range(len(labels))])
    return _arrays("set.npz", images=images, labels=labels, classes=classes, groups=groups)


def _medmnist(images: np.ndarray, labels: np.ndarray) -> Sample:
    half = len(images) // 2
    rows = {"train": slice(half), "val": slice(half, half + 4), "test": slice(half + 4, None)}
    arrays = {f"{split}_images": images[row] for split, row in rows.items()}
    arrays |= {f"{split}_labels": labels[row][:, None] for split, row in rows.items()}
    return _arrays("bloodmnist.npz", **arrays)


def _packed(folder: pathlib.Path, as_pixels: bool) -> Sample:
    out = folder / f"packed{as_pixels}"
    dataset = sources.load(str(folder / "cells.zip"), SIDE, lazy=True)
    packing.pack(dataset, out, as_pixels=as_pixels, shards=2)
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def _configs() -> list[Sample]:
    config = config_lib.defaults()
    run = config_lib.to_json(config_lib.validate(config))
    splits = {
        "seed": 0,
        "sources": {"train": {"spec": "a.zip", "fingerprint": "sha256:0", "path": "/a.zip"}},
        "classes": ["c0"],
        "left_out": [["junk", "c0", 1]],
        "pixels": {"train": fingerprint.to_text(np.arange(20, dtype=np.uint64))},
        "parts": {"train": [f"c0/{i}.png" for i in range(20)]},
    }
    written = (
        "from bloodjax import settings\n\n\n"
        "def get_config():\n    config = settings.defaults()\n"
        "    config.batch_size = 32\n    config.seed = 7\n"
        '    config.model.name = "resnet50"\n    config.phases.finetune.epochs = 12\n'
        "    config.phases.finetune.learning_rate = 3e-4\n    config.augment = 'd4'\n"
        "    return config\n"
    )
    return [
        {"run.py": written.encode()},
        {"config.json": run.encode()},
        {"splits.json": json.dumps(splits, indent=1).encode()},
        {"metrics.jsonl": b"".join(_entry(step) for step in range(7, 50, 7))},
    ]


def _entry(step: int) -> bytes:
    scores = {"loss": 1.5, "accuracy": 0.25, "balanced_accuracy": 0.2}
    entry = {"event": "epoch", "step": step, "epoch": step // 7, "phase": "head"}
    entry |= {"train": {"loss": 2.0, "accuracy": 0.1}, "validation": scores}
    return json.dumps(entry).encode() + b"\n"


def _weights(folder: pathlib.Path, rng: np.random.Generator) -> list[Sample]:
    _, variables = models.random_model(NETWORK, _CLASSES)
    path = folder / "ours.safetensors"
    architecture = models.architecture(NETWORK)
    cfg = pretrained_cfg.inferred(architecture, "random", bloodjax_file.FORMAT)
    bloodjax_file.write(path, NETWORK, _CLASSES, cfg, variables)
    kernel = rng.normal(size=(3, 3, 3, 8)).astype(np.float32)
    with h5py.File(folder / "keras.h5", "w") as file:
        layer = file.create_group("conv1")
        layer.create_dataset("conv1/kernel:0", data=kernel)
        layer.create_dataset("conv1/bias:0", data=kernel[0, 0, 0])
        layer.attrs["weight_names"] = [b"conv1/kernel:0", b"conv1/bias:0"]
        file.attrs["layer_names"] = [b"conv1"]
    with h5py.File(folder / "keras3.weights.h5", "w") as file:
        layer = file.create_group("layers/conv2d/vars")
        layer.attrs["name"] = "conv1"
        layer.create_dataset("0", data=kernel)
        layer.create_dataset("1", data=kernel[0, 0, 0])
    names = ["ours.safetensors", "keras.h5", "keras3.weights.h5"]
    if importlib.util.find_spec("torch"):
        import torch

        tensors = {"conv1.weight": torch.from_numpy(kernel), "conv1.step": torch.tensor(3)}
        torch.save(tensors, folder / "new.pth")
        torch.save(tensors, folder / "old.pth", _use_new_zipfile_serialization=False)
        names += ["new.pth", "old.pth"]
    return [{name: (folder / name).read_bytes()} for name in names]
