"""Seeded damage to files of the formats that bloodjax reads.

Bytes are flipped, removed, repeated or replaced. Because checksums detect nearly all of that,
containers (zip and npz, PNG, ArrayRecord) are also unpacked, damaged inside and packed again with
valid checksums, with false names and sizes of members, and with pickles that would run code.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pathlib
import pickle
import random
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from bloodjax.data.formats.records import Writer

# Folder that is created in the working directory if code in a file is run.
TRAP = "code_was_run"
_SHARD = re.compile(r".*\.array_record-.*")

# File name -> content.
Sample = dict[str, bytes]
Member = tuple[zipfile.ZipInfo, bytes]
Way = Callable[[bytes, random.Random], bytes]


def mutated(sample: Sample, rng: random.Random) -> tuple[Sample, str]:
    """Damages one file of the sample with one to three changes; returns a description too."""
    name = rng.choice(sorted(sample))
    content, done = sample[name], []
    for _ in range(rng.choice((1, 1, 2, 3))):
        ways = [*_BYTES, *_of_format(name, content)]
        way = rng.choice(ways)
        content = way(content, rng)
        done.append(way.__name__.strip("_"))
    if len(sample) > 1 and rng.random() < 0.05:
        left = {key: value for key, value in sample.items() if key != name}
        return left, f"{name}: deleted"
    return {**sample, name: content}, f"{name}: {', '.join(done)}"


def zip_of(members: Sequence[Member]) -> bytes:
    """A zip file of these members; several may have the same name."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as zipped:
        warnings.simplefilter("ignore")  # Warns of duplicate names.
        for info, content in members:
            zipped.writestr(info, content)
    return file.getvalue()


def member(name: str, method: int = zipfile.ZIP_DEFLATED) -> zipfile.ZipInfo:
    """A member of a zip file, with a constant date."""
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    return info


# Changes for any bytes.


def _flip(content: bytes, rng: random.Random) -> bytes:
    return _over(content, rng, lambda old: bytes(b ^ 1 << rng.randrange(8) for b in old), 4)


def _noise(content: bytes, rng: random.Random) -> bytes:
    return _over(content, rng, lambda old: rng.randbytes(len(old)), 64)


def _extreme(content: bytes, rng: random.Random) -> bytes:
    """Replaces 1 to 8 bytes by the largest or smallest number, zero or one."""
    return _over(content, rng, lambda old: rng.choice(_EXTREMES) * len(old), 8)


def _cut_out(content: bytes, rng: random.Random) -> bytes:
    return _over(content, rng, lambda old: b"", 256)


def _repeat(content: bytes, rng: random.Random) -> bytes:
    return _over(content, rng, lambda old: old * rng.choice((2, 3, 100)), 256)


def _truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))] if content else content


def _append(content: bytes, rng: random.Random) -> bytes:
    return content + rng.randbytes(rng.randint(1, 300))


def _another_number(content: bytes, rng: random.Random) -> bytes:
    """Replaces a number in the text."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:100_000]))
    if not found:
        return _flip(content, rng)
    at = rng.choice(found)
    return content[: at.start()] + rng.choice(_NUMBERS) + content[at.end() :]


def _over(content: bytes, rng: random.Random, new: Callable[[bytes], bytes], most: int) -> bytes:
    """Replaces up to `most` consecutive bytes of `content` by `new` of them."""
    # The start and the end are more likely, because formats have their metadata there.
    length = rng.randint(1, most)
    last = max(len(content) - length, 0)
    start = rng.choice((rng.randint(0, last), rng.randint(0, min(64, last)), max(last - 64, 0)))
    return content[:start] + new(content[start : start + length]) + content[start + length :]


_EXTREMES = (b"\xff", b"\x00", b"\x7f", b"\x80", b"\x01")
_NUMBERS = (b"0", b"-1", b"1e308", b"99999999999999999999", b"2147483648", b"0.5", b"NaN", b"007")
_BYTES = (_flip, _noise, _extreme, _cut_out, _repeat, _truncate, _append, _another_number)


# Changes of the content of a format, with valid checksums.


def _of_format(name: str, content: bytes) -> tuple[Way, ...]:
    """The changes for this format, repeated to be about as frequent as those of bytes."""
    if name.endswith((".npz", ".zip", "new.pth")) and zipfile.is_zipfile(io.BytesIO(content)):
        return (_member, _member, _member, _name, _name, pickle_in_member, _swollen_member)
    if name.endswith(".pth"):
        return (_pickle,)
    if content.startswith(_PNG):
        return (chunk,) * 4
    if _SHARD.fullmatch(name):
        return (_record,) * 4
    if name.endswith((".json", ".jsonl")):
        return (_json_value,) * 6
    if name.endswith(".safetensors"):
        return (_header,) * 6
    return ()


def _in_a_zip(change: Callable[[list[Member], int, random.Random], Member]) -> Way:
    """A change that replaces a random member of a zip by `change` of it."""

    @functools.wraps(change)
    def way(content: bytes, rng: random.Random) -> bytes:
        members = _members(content)
        if not members:
            return content
        i = rng.randrange(len(members))
        members[i] = change(members, i, rng)
        return zip_of(members)

    return way


@_in_a_zip
def _member(members: list[Member], i: int, rng: random.Random) -> Member:
    """Changes the content of the member."""
    info, inner = members[i]
    return info, rng.choice((*_BYTES, *_of_format(info.filename, inner)))(inner, rng)


@_in_a_zip
def _name(members: list[Member], i: int, rng: random.Random) -> Member:
    """Renames the member, or makes it a symbolic link."""
    name = rng.choice(_NAMES).replace("*", members[0][0].filename)
    info = member(name, members[i][0].compress_type)
    link = rng.random() < 0.3
    if link:
        info.external_attr = 0o120777 << 16
    return info, b"/etc/passwd" if link else members[i][1]


@_in_a_zip
def pickle_in_member(members: list[Member], i: int, rng: random.Random) -> Member:
    """Replaces the content by a pickle, or an array with a pickle, that would create `TRAP`."""
    if rng.random() >= 0.5:
        return members[i][0], pickle.dumps(_Trap(), protocol=2)
    file = io.BytesIO()
    np.save(file, np.array([_Trap()], object), allow_pickle=True)
    return members[i][0], file.getvalue()


@_in_a_zip
def _swollen_member(members: list[Member], i: int, _: random.Random) -> Member:
    """Makes the member unpack to a hundred million zeros."""
    return member(members[i][0].filename), members[i][1][:128] + bytes(100_000_000)


def _pickle(content: bytes, rng: random.Random) -> bytes:
    """Replaces the file, or its end, by a pickle that would create `TRAP`."""
    return content[: rng.choice((0, 0, rng.randrange(len(content) + 1)))] + pickle.dumps(_Trap())


def chunk(content: bytes, rng: random.Random) -> bytes:
    """Changes a chunk of a PNG; the checksum is valid."""
    chunks, at = [], len(_PNG)
    while at + 12 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return content
    i = rng.randrange(len(chunks))
    kind, body = chunks[i]
    if kind == b"IDAT" and rng.random() < 0.5:
        with contextlib.suppress(zlib.error):
            body = zlib.compress(rng.choice(_BYTES)(zlib.decompress(body), rng))
    else:
        body = rng.choice(_BYTES)(body, rng)
    chunks[i] = kind, body
    parts = (
        len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        for kind, body in chunks
    )
    return _PNG + b"".join(parts)


def _record(content: bytes, rng: random.Random) -> bytes:
    """Changes, removes or repeats a record of an ArrayRecord file."""
    with tempfile.TemporaryDirectory() as name:
        path = pathlib.Path(name) / "shard"
        path.write_bytes(content)
        try:
            reader = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
            records = reader.read([*range(reader.num_records())])
        except (RuntimeError, ValueError, IndexError):
            return content
        if records:
            i = rng.randrange(len(records))
            changed = [rng.choice(_BYTES)(records[i], rng)]
            records[i : i + 1] = rng.choice((changed, changed, changed, [], changed * 2))
        writer = Writer(path)
        for record in records:
            writer.write(record)
        writer.close()
        return path.read_bytes()


def _json_value(content: bytes, rng: random.Random) -> bytes:
    """Replaces or removes a value in a JSON file or in one of its lines."""
    lines = content.splitlines() if content.count(b"\n{") else [content]
    i = rng.randrange(len(lines)) if lines else 0
    try:
        tree = json.loads(lines[i])
    except (ValueError, IndexError, RecursionError):
        return content
    paths = [*_paths(tree)]
    if not paths:
        return rng.choice(_VALUES).encode()
    parent, key = rng.choice(paths)
    if rng.random() < 0.2:
        del parent[key]
    else:
        parent[key] = "\0here"
    lines[i] = json.dumps(tree).replace('"\\u0000here"', rng.choice(_VALUES)).encode()
    return b"\n".join(lines) + b"\n"


def _header(content: bytes, rng: random.Random) -> bytes:
    """Replaces a value in the header of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    header = _json_value(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _paths(tree: Any) -> Iterator[tuple[Any, Any]]:
    """All (parent, key) pairs in a tree of dictionaries and lists."""
    keys = tree if isinstance(tree, dict) else range(len(tree) if isinstance(tree, list) else 0)
    for key, value in [(key, tree[key]) for key in keys]:
        yield tree, key
        yield from _paths(value)


def _members(content: bytes) -> list[Member]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as zipped:
            infos = zipped.infolist()
            return [(member(i.filename, i.compress_type), zipped.read(i)) for i in infos]
    except Exception:  # A file that is already damaged stays as it is.
        return []


class _Trap:
    """Creates the folder `TRAP` when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (TRAP,)


_PNG = b"\x89PNG\r\n\x1a\n"
_NAMES = (
    *("../../escaped.png", "/tmp/escaped.png", "..\\..\\escaped.png", "C:\\escaped.png"),
    *("a/../../b.png", "", "/", ".", "c0/", "*", "c0/" + "x" * 5000 + ".png", "c0/\x01\n.png"),
    *("c0/\ud7ff.png", "data.npy"),
)
_VALUES = (
    *("null", "true", "-1", "0", "1e308", "-1e400", "NaN", "99999999999999999999", '""', '"x"'),
    *("[]", "{}", "[[[]]]", "[" * 2000 + "]" * 2000, '"../../../escaped"', '"\\ud800"', '"a\\nb"'),
    '{"a": 1}',
)
