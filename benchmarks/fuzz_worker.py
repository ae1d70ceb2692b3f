"""Reads the folders that `fuzz` lists on standard input, and answers in lines of JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import numpy as np

from benchmarks import layouts
from benchmarks.samples import NETWORK, SIDE
from bloodjax import config as config_lib
from bloodjax.config import parsed
from bloodjax.data import audit, sources, splits, statement
from bloodjax.data.dataset import Dataset
from bloodjax.data.options import DEFAULTS, ReadOptions
from bloodjax.errors import UserError
from bloodjax.evaluation import tables
from bloodjax.pretrained import load
from bloodjax.report import evaluation_plots, image_sheet
from bloodjax.training import metric_writer, saved_splits, workdir

# Events of Python's audit hooks that reading a file must not cause.
_NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")
_NEVER += ("pickle.find_class", "shutil.rmtree", "os.symlink", "os.link")
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
# Beginnings of error messages about a key or value of the user's config.
_OF_A_CONFIG = ("config.", "unknown config key", "unknown model")


def main() -> None:
    """Answers until the end of standard input."""
    answers = os.fdopen(os.dup(1), "w")  # Reading may print.
    os.dup2(2, 1)
    faults: list[str] = []
    watch = [False]
    _warm_up()

    def hear(event: str, arguments: tuple) -> None:
        if watch[0] and (wrong := fault(event, arguments)):
            faults.append(wrong)

    sys.addaudithook(hear)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        kind, folder = json.loads(line)
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # Resets the peak.
        faults.clear()
        watch[0] = True
        try:
            found, text = outcome(READERS[kind], pathlib.Path(folder))
        finally:
            watch[0] = False
        wrong = faults + ([text] if found == "fault" else [])
        answer = {"outcome": found, "text": text, "peak": _peak(), "faults": wrong}
        print(json.dumps(answer), file=answers, flush=True)


def outcome(read: Callable[[pathlib.Path], Any], folder: pathlib.Path) -> tuple[str, str]:
    """Reads a folder.

    Returns:
      ("result", ""), ("refused", error message) or ("fault", description).
    """
    try:
        read(folder)
    except UserError as error:
        text = str(error)
        if folder.name not in text and not text.startswith(_OF_A_CONFIG):
            return "fault", f"does not name the file: {text}"
        return "refused", text
    except BaseException:
        return "fault", traceback.format_exc()
    return "result", ""


def fault(event: str, arguments: tuple) -> str:
    """The fault that an event of Python's audit hooks is, or ""."""
    if event in _NEVER or event in _CHANGES:
        return f"{event} {arguments!r}"[:300]
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path, mode, flags = arguments
        writes = any(c in (mode or "") for c in "wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
        if writes and os.fsdecode(path) != os.devnull:
            return f"opened {os.fsdecode(path)!r} to write"
    return ""


def _peak() -> int:
    """Peak memory in bytes since the last reset."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def _source(spec: str, options: ReadOptions = DEFAULTS) -> None:
    """Reads a SPEC as training, the audit and `bloodjax.pack` do."""
    sources.fingerprint(spec, options=options)
    sources.native_size(spec)
    dataset = sources.load(spec, SIDE, options=options)
    audit.audit({"train": dataset})
    options = dataclasses.replace(options, bad_images="skip")
    dataset = sources.load(spec, 2 * SIDE, options=options, lazy=True)
    for image in dataset.images:
        image.sum()


def _table(folder: pathlib.Path) -> None:
    tables_in = [path for path in folder.iterdir() if path.name != layouts.IMAGES]
    spec = str(tables_in[0] if tables_in else folder / "labels.csv")
    _source(spec, ReadOptions(images=str(folder / layouts.IMAGES)))


def _image(folder: pathlib.Path) -> None:
    (path,) = folder.iterdir()
    sources.load_images(str(path), SIDE)


def _file_of(folder: pathlib.Path) -> None:
    (path,) = folder.iterdir()
    _source(str(path))


def _config(folder: pathlib.Path) -> None:
    (path,) = folder.iterdir()
    match path.name:
        case "run.py":
            config_lib.load(str(path))
        case "config.json":
            workdir.open_config(config_lib.validate(config_lib.defaults()), folder)
        case "splits.json":
            splits.load(path)
        case "metrics.jsonl":
            metric_writer.read_history(folder)


def _weights(folder: pathlib.Path) -> None:
    (path,) = folder.iterdir()
    weights = load.load_weights(NETWORK, str(path))
    for array in weights.arrays.values():
        np.asarray(array).sum()
    if path.suffix == ".safetensors":  # The tensors of other formats are not of a network.
        weights.classifier()


def _folder(folder: pathlib.Path) -> None:
    """Reads the same files from a folder and from a zip; every image must be accounted for."""
    path, zipped = folder / layouts.FOLDER, folder / layouts.ZIP
    images = sum(layouts.is_image(file.read_bytes()) for file in _visible(path))
    found = []
    for spec in (str(path), str(zipped)):
        unlabelled = sources.load_images(spec, SIDE)
        _account(images, unlabelled)
        try:
            dataset = sources.load(spec, SIDE)
        except UserError as error:
            found.append(str(error).replace(spec, ""))
            continue
        sources.fingerprint(spec)
        _account(images, dataset)
        audit.audit({"train": dataset})
        statement.lines({"train": dataset})
        columns = (dataset.names, dataset.labels.tolist(), dataset.splits, dataset.groups)
        pixels = [image.tobytes() for image in dataset.images]
        found.append((dataset.classes, sorted(zip(*columns, pixels, strict=True))))
    refused = [each for each in found if isinstance(each, str)]
    # Some programs write a backslash in a zip where others write a slash.
    same = len(refused) == 2 or found[0] == found[1]
    if not same and not any("\\" in file.name for file in path.rglob("*")):
        raise AssertionError(f"the folder gives {found[0]!a:.500}, the zip {found[1]!a:.500}")
    if refused:
        raise UserError(f"{path}{refused[0]}")


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files at any depth; a hidden folder counts as one in what is left out, so it has none."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return [p for p in files if not any(n.startswith(".") for n in p.relative_to(folder).parts)]


def _account(images: int, dataset: Dataset) -> None:
    left_out = sum(entry.count for entry in dataset.reading.left_out)
    if len(dataset) + left_out < images:
        raise AssertionError(
            f"of {images} images {len(dataset)} were read and {left_out} left out: "
            f"{dataset.reading}"
        )


def _arrays(folder: pathlib.Path) -> None:
    """Reads an npz; its images must be in the same classes as before they had other types."""
    spec = str(folder / layouts.ARRAYS)
    true = json.loads((folder / layouts.LABELS).read_text())
    if len(sources.load_images(spec, SIDE)) != len(true):
        raise AssertionError("images without labels are missing")
    dataset = sources.load(spec, SIDE)
    pairs = set(zip(true, dataset.labels.tolist(), strict=True))
    # Labels that are only true or false part the images into two classes.
    expected = len(set(true)) if len(set(dataset.labels.tolist())) > 2 else 2
    classes = {found for _, found in pairs}
    if len(classes) != expected or len(pairs) != len(set(true)):
        raise AssertionError(f"classes are {sorted(pairs)}: {dataset.reading}")
    audit.audit({"train": dataset})


def _names(folder: pathlib.Path) -> None:
    """Takes names as values of flags, as classes of a table and of plots, and as sources."""
    text = (folder / "names.txt").read_bytes().decode("utf-8", "surrogateescape")
    names = text.split("\n")
    for name in names:
        config = config_lib.load("quickstart", [f"data.train={name}", f"model.weights={name}"])
        if (config.data.train, config.model.weights) != (name, name):
            raise AssertionError(f"{name!a} became {config.data.train!a}, {config.model.weights!a}")
        title = saved_splits.source_name(name)
        if "/" in title or title in ("", ".", "..", *saved_splits.SPLITS):
            raise AssertionError(f"{name!a} gives a folder {title!a}")
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    stripped = tuple(name.strip() for name in names)
    if parsed.parse_names(line.getvalue()) != stripped:
        raise AssertionError(f"{names!a} became {parsed.parse_names(line.getvalue())!a}")
    scores = np.eye(len(names), dtype=np.float32)
    table = tables.to_csv(tables.predictions(names, names, scores, names))
    header, *rows = csv.reader(io.StringIO(table, newline=""))
    if len({*header}) < len(header) or [row[:3] for row in rows] != [[n] * 3 for n in names]:
        raise AssertionError(f"a table for {names!a}: {table!a}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recalls = {name: {"recall": 0.5, "recall_ci95": (0.2, 0.8)} for name in names}
        ElementTree.fromstring(evaluation_plots.class_recalls(recalls))
        image_sheet.render([[np.zeros((8, 8, 3), np.uint8)] * len(names)], [names])


READERS = {
    "npz": _file_of,
    "zip": _file_of,
    "image": _image,
    "array_record": lambda folder: _source(str(folder)),
    "config": _config,
    "weights": _weights,
    "folder": _folder,
    "table": _table,
    "arrays": _arrays,
    "names": _names,
}


def _warm_up() -> None:
    """Imports and compiles, so that samples are not charged for it.

    matplotlib makes folders of its own in the user's, when it is first imported.
    """
    dataset = sources.load("synthetic:40", SIDE)
    audit.audit({"train": dataset})
    load.create_model(NETWORK, None, 8)
    image_sheet.render([[dataset.images[0]]], [["a"]])


if __name__ == "__main__":
    main()
