"""Seeded changes of names, types and layouts, as laboratories and programs make them.

`changed` rearranges a folder of intact images, writes the images as other types, or adds what
systems and people leave beside them. No image is damaged, so reading must account for each one.
`arrays` writes an npz as other types, and `texts` makes values of flags and names of classes.
"""

from __future__ import annotations

import io
import os
import random
import unicodedata
from collections.abc import Callable

import numpy as np
from PIL import Image

from benchmarks.mutations import Sample, member, zip_of

# Names that have been read as something else somewhere.
NAMES = (
    *("1.10", "2024_01", "1e3", "0x10", "true", "None", "nan", "0", "-1", "007", "1,2", "a b"),
    *(" lead", "trail ", "dots...", ".5", "-x", "~", "$HOME", "$x^2$ & $y", "50% <b>x", "it's"),
    *(
        'q"q',
        "a,b",
        "a\\b",
        "a:b",
        "[1]",
        "*",
        "?",
        "{a}",
        "#1",
        "%20",
        "a;b",
        "a=b",
        "é",
        "e\u0301",
    ),
    *(
        "größe",
        "嗜中性粒细胞",
        "🩸",
        "name",
        "label",
        "predicted",
        "train",
        "Test",
        "class_0",
        "x" * 120,
    ),
    *("caf\udce9", "\u200bzero", "tab\tbed", "(1, 2)", "'q'", "synthetic", "auto", "~root"),
)
# What is in folders beside the images: name -> content.
_LEFT = {
    "Thumbs.db": b"\xd0\xcf\x11\xe0", "ehthumbs.db": b"x", ".DS_Store": b"\0\0\0\1Bud1",
    "desktop.ini": b"[.ShellClassInfo]", "README.md": b"# cells", "LICENSE": b"MIT",
    "labels.csv": b"name,label\n", "notes.txt": b"", "Icon\r": b"",
    "$RECYCLE.BIN/desktop.ini": b"x", "lost+found/1": b"x", "System Volume Information/a": b"x",
    "@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg": b"x", "__MACOSX/._1.png": b"x", "index.html": b"<html>",
}  # fmt: skip
_STREAMS = (":Zone.Identifier", ":encryptable", "@SynoEAStream")

Change = Callable[[Sample, random.Random], Sample]


FOLDER, ZIP = "cells", "cells.zip"
ARRAYS, LABELS = "set.npz", "labels.json"
IMAGES = "images.zip"  # of a table


def both(files: Sample) -> Sample:
    """The files in a folder, and the same in a zip file beside it."""
    names = {name for name in files if not any(other.startswith(name + "/") for other in files)}
    members = [(member(_in_zip(name)), files[name]) for name in files if name in names]
    return {f"{FOLDER}/{name}": files[name] for name in files if name in names} | {
        ZIP: zip_of(members)
    }


def changed(sample: Sample, rng: random.Random) -> tuple[Sample, str]:
    """Makes one to four of the changes below to a sample of `both`; returns a description too."""
    start = f"{FOLDER}/"
    files = {n.removeprefix(start): content for n, content in sample.items() if n.startswith(start)}
    done = []
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        change = rng.choice(_CHANGES)
        files = change(files, rng)
        done.append(change.__name__.strip("_"))
    return both(files), ", ".join(done)


def _in_zip(name: str) -> str:
    """A name that is not UTF-8 as `bloodjax` shows it."""
    try:
        return os.fsencode(name).decode()
    except UnicodeDecodeError:
        return os.fsencode(name).decode("latin-1")


def texts(sample: Sample, rng: random.Random) -> tuple[Sample, str]:
    """Replaces the lines of the one file of the sample by odd names, which may be joined."""
    (file,) = sample
    names = [_text(rng) for _ in range(rng.choice((1, 2, 3, 5, 8)))]
    lines = list(dict.fromkeys(names))
    content = "\n".join(lines).encode("utf-8", "surrogateescape")
    return {file: content}, f"{file}: {lines!a}"


def arrays(sample: Sample, rng: random.Random) -> tuple[Sample, str]:
    """Writes the images and labels of an npz as other types; `LABELS` keeps what is true."""
    with np.load(io.BytesIO(sample[ARRAYS])) as file:
        stored = dict(file)
    images, labels = rng.choice(sorted(_IMAGES)), rng.choice(sorted(_LABELS))
    stored["images"] = _IMAGES[images](stored["images"])
    stored["labels"] = _LABELS[labels](stored["labels"])
    if rng.random() < 0.5:
        del stored["classes"]
    file = io.BytesIO()
    np.savez(file, **stored)
    return {**sample, ARRAYS: file.getvalue()}, f"images: {images}, labels: {labels}"


def _text(rng: random.Random) -> str:
    name = rng.choice(NAMES)
    if rng.random() < 0.3:
        name += rng.choice(NAMES)
    if rng.random() < 0.1:
        name = rng.choice((name.upper(), name * 40, f" {name}", unicodedata.normalize("NFD", name)))
    return name.replace("\n", "")


def _folders(sample: Sample) -> list[str]:
    """The folders that have files in them."""
    return sorted({name.rpartition("/")[0] for name in sample} - {""})


def _moved(sample: Sample, place: Callable[[str], str]) -> Sample:
    """The files at other paths; a file whose place is taken stays where it is."""
    moved: Sample = {}
    for name, content in sample.items():
        new = place(name)
        # A name of a file is no longer than what file systems allow.
        fits = all(len(part.encode("utf-8", "surrogateescape")) < 250 for part in new.split("/"))
        moved[new if fits and new not in moved and new not in sample else name] = content
    return moved


def _file_name(text: str) -> str:
    """`text` as the name of a file."""
    text = text.replace("/", "_").replace("\0", "")
    return "_" if text in ("", ".", "..") else text


def _rename_folder(sample: Sample, rng: random.Random) -> Sample:
    old = rng.choice(_folders(sample))
    head, _, last = old.rpartition("/")
    new = _file_name(rng.choice((_text(rng), last.upper(), last + " ", str(rng.randrange(13)))))
    new = f"{head}/{new}" if head else new
    taken = any(folder == new or folder.startswith(new + "/") for folder in _folders(sample))
    if taken:
        return sample
    return _moved(
        sample, lambda name: new + name[len(old) :] if name.startswith(old + "/") else name
    )


def _rename_file(sample: Sample, rng: random.Random) -> Sample:
    old = rng.choice(sorted(sample))
    head = old.rpartition("/")[0]
    new = _file_name(_text(rng)) + rng.choice((".png", ".PNG", ".jfif", ".dib", "", ".v1"))
    return _moved(sample, lambda name: f"{head}/{new}" if name == old else name)


def _wrap(sample: Sample, rng: random.Random) -> Sample:
    """One more folder around everything."""
    outer = _file_name(
        rng.choice(("data", "images", "cells-master", "dataset2-master", _text(rng)))
    )
    return _moved(sample, lambda name: f"{outer}/{name}")


def _splits(sample: Sample, rng: random.Random) -> Sample:
    """The files in folders of splits, around or within the classes."""
    names = rng.choice(
        (("train", "test"), ("TRAIN", "TEST", "TEST_SIMPLE"), ("Train", "TestA", "TestB"),
         ("training_data", "validation_data"), ("fold_0", "fold_1"), ("train", "val", "unlabelled"))
    )  # fmt: skip
    within = rng.random() < 0.2
    split_of = {name: rng.choice(names) for name in sorted(sample)}

    def place(name: str) -> str:
        head, _, last = name.rpartition("/")
        return f"{head}/{split_of[name]}/{last}" if within else f"{split_of[name]}/{name}"

    return _moved(sample, place)


def _patients(sample: Sample, rng: random.Random) -> Sample:
    """A folder for each patient within the class."""
    form = rng.choice(("patient_{}", "P{}", "slide {}", "{}"))
    number = {name: rng.randrange(3) for name in sorted(sample)}
    return _moved(sample, lambda name: "/".join(
        (name.rpartition("/")[0], form.format(number[name]), name.rpartition("/")[2])
    ).lstrip("/"))  # fmt: skip


def _deeper(sample: Sample, rng: random.Random) -> Sample:
    """One file some folders further down."""
    old = rng.choice(sorted(sample))
    head, _, last = old.rpartition("/")
    down = "/".join(["more", "and", "more"][: rng.randint(1, 3)])
    return _moved(sample, lambda name: f"{head}/{down}/{last}" if name == old else name)


def _to_the_top(sample: Sample, rng: random.Random) -> Sample:
    """One file beside the folders of the classes."""
    old = rng.choice(sorted(sample))
    return _moved(sample, lambda name: name.rpartition("/")[2] if name == old else name)


def _leave(sample: Sample, rng: random.Random) -> Sample:
    """A file that a system or a person leaves."""
    folder = rng.choice(["", *(f"{name}/" for name in _folders(sample))])
    name = rng.choice(sorted(_LEFT))
    stream = rng.choice(sorted(sample)) + rng.choice(_STREAMS)
    left = {stream: b"[ZoneTransfer]"} if rng.random() < 0.3 else {folder + name: _LEFT[name]}
    return {**left, **sample}


def _groups(sample: Sample, rng: random.Random) -> Sample:
    """A table of groups, as programs write them."""
    images = [name for name, content in sorted(sample.items()) if is_image(content)]
    listed = [name for name in images if rng.random() < rng.choice((1, 1, 0.9))]
    separator = rng.choice(",,,;\t")
    slash = rng.choice("//\\")
    rows = [f"{name.replace('/', slash)}{separator}p{i % 4}" for i, name in enumerate(listed)]
    head = rng.choice((f"name{separator}group", f"Name{separator}Group", f"file{separator}patient"))
    text = rng.choice(("\n", "\r\n")).join([head, *rows])
    encoding = rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    name = rng.choice(("groups.csv", "groups.csv", "Groups.CSV", "group.csv"))
    return {**sample, name: text.encode(encoding, "replace")}


def _other_type(sample: Sample, rng: random.Random) -> Sample:
    """One image, or all of them, written with another type of pixels or format."""
    kind = rng.choice(sorted(_TYPES))
    images = [name for name, content in sorted(sample.items()) if is_image(content)]
    chosen = images if rng.random() < 0.4 else images[:1]
    return {
        name: _TYPES[kind](content) if name in chosen else content
        for name, content in sample.items()
    }


def is_image(content: bytes) -> bool:
    """Whether this is one of the images of a sample, of any type."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.size[0] > 1
    except OSError:
        return False


def _rgb(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content)).convert("RGB")


def _saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _rotated(content: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _saved(_rgb(content), "JPEG", exif=exif)


def _bits(bits: int) -> Callable[[bytes], bytes]:
    def convert(content: bytes) -> bytes:
        values = np.asarray(_rgb(content).convert("L"), np.uint16) << (bits - 8)
        return _saved(Image.fromarray(values), "PNG")

    return convert


def _transparent(content: bytes) -> bytes:
    image = _rgb(content)
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return _saved(image, "PNG")


def _wide(content: bytes) -> bytes:
    image = _rgb(content)
    return _saved(image.resize((2 * image.width, image.height)), "BMP")


def _stack(content: bytes) -> bytes:
    image = _rgb(content)
    return _saved(image, "TIFF", save_all=True, append_images=[image.transpose(0)] * 2)


_TYPES: dict[str, Callable[[bytes], bytes]] = {
    "jpeg": lambda content: _saved(_rgb(content), "JPEG"),
    "rotated": _rotated,
    "10 bits": _bits(10),
    "12 bits": _bits(12),
    "16 bits": _bits(16),
    "float": lambda content: _saved(_rgb(content).convert("F"), "TIFF"),
    "grey": lambda content: _saved(_rgb(content).convert("L"), "PNG"),
    "one bit": lambda content: _saved(_rgb(content).convert("1"), "PNG"),
    "palette": lambda content: _saved(_rgb(content).convert("P"), "GIF"),
    "cmyk": lambda content: _saved(_rgb(content).convert("CMYK"), "JPEG"),
    "transparent": _transparent,
    "wide": _wide,
    "stack": _stack,
}
_IMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "uint8": lambda x: x,
    "0 to 1": lambda x: x.astype(np.float32) / 255,
    "0 to 255": lambda x: x.astype(np.float64),
    "-1 to 1": lambda x: x.astype(np.float32) / 127.5 - 1,
    "12 bits": lambda x: x.astype(np.uint16) * 16,
    "16 bits": lambda x: x.astype(np.uint16) * 257,
    "int64": lambda x: x.astype(np.int64),
    "bool": lambda x: x > 127,
    "grey": lambda x: x[..., 0],
    "one channel": lambda x: x[..., :1],
    "channels first": lambda x: x.transpose(0, 3, 1, 2),
    "four channels": lambda x: np.concatenate([x, x[..., :1]], axis=-1),
    "not square": lambda x: x[:, :, :17],
    "flat": lambda x: x.reshape(len(x), -1),
    "not finite": lambda x: np.where(x == x.flat[0], np.nan, x.astype(np.float32)),
}
_LABELS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "int64": lambda x: x,
    "column": lambda x: x[:, None].astype(np.uint8),
    "from 1": lambda x: x + 1,
    "one-hot": lambda x: np.eye(x.max() + 1, dtype=np.float32)[x],
    "float": lambda x: x.astype(np.float64),
    "bool": lambda x: x > x.min(),
    "text": lambda x: np.array([f"class {i}" for i in x]),
    "bytes": lambda x: np.array([f"c{i}".encode() for i in x]),
    "numbers as text": lambda x: np.array([str(i) for i in x]),
    "negative": lambda x: x - 1,
    "too few": lambda x: x[:-1],
    "fractions": lambda x: x + 0.5,
}
_CHANGES: tuple[Change, ...] = (
    *(_rename_folder, _rename_folder, _rename_file, _wrap, _splits, _patients, _deeper),
    *(_to_the_top, _leave, _leave, _groups, _other_type, _other_type),
)
