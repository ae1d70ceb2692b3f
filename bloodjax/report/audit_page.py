"""Writes an audit's findings: `audit.json` for programs, and the page `index.html`."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import UInt8

from bloodjax.data import images, statement
from bloodjax.data.audit import Audit, AuditedImage, Group
from bloodjax.data.dataset import Dataset
from bloodjax.io.files import atomic_write, make_folder
from bloodjax.report import html

# Limits per kind of finding, which keep the page below 3 MB. audit.json has everything.
_MAX_THUMBNAILS = 20
_MAX_NAMES = 4
_THUMBNAIL = 96  # Pixels.


@dataclasses.dataclass(frozen=True)
class Version:
    """Images with equal pixels, as the page shows them.

    Attributes:
      src: Thumbnail as a data URI.
      images: The first of the images.
      more: Number of images that are not in `images`.
      labels: Class name and number of images, the most frequent first.
      note: A remark about the images, or "".
    """

    src: str
    images: Group
    more: int
    labels: tuple[tuple[str, int], ...]
    note: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """Findings of one kind: their number, and the groups of versions that the page shows."""

    total: int
    groups: tuple[tuple[Version, ...], ...]


def write(
    audit: Audit, datasets: Mapping[str, Dataset], out_dir: str | os.PathLike[str]
) -> pathlib.Path:
    """Writes `audit.json` and the self-contained `index.html` to `out_dir`.

    Args:
      audit: The findings.
      datasets: The audited datasets by key, for the thumbnails.
      out_dir: A local folder; it is created if needed. Files in it are replaced atomically.

    Returns:
      Path of the page.

    Raises:
      UserError: `out_dir` cannot be written to.
    """
    contents = {
        "audit.json": json.dumps(audit.to_json(), indent=1) + "\n",
        "index.html": _page(audit, datasets),
    }
    out_dir = pathlib.Path(out_dir)
    make_folder(out_dir)
    for name, content in contents.items():
        atomic_write(out_dir / name, content)
    return out_dir / "index.html"


def _page(audit: Audit, datasets: Mapping[str, Dataset]) -> str:
    reasons = dict(zip(audit.junk, audit.junk_reasons, strict=True))

    def finding(groups: Iterable[Group]) -> Finding:
        groups = tuple(groups)
        shown, remaining = [], _MAX_THUMBNAILS
        for group in groups:
            if remaining == 0:
                break
            versions = _versions(group, datasets)[:remaining]
            remaining -= len(versions)
            if versions:
                shown.append(
                    tuple(
                        _shown(version, datasets, reasons.get(version[0], ""))
                        for version in versions
                    )
                )
        return Finding(len(groups), tuple(shown))

    return html.render(
        "audit.html",
        audit=audit,
        statement=statement.lines(datasets),
        sizes={key: len(dataset) for key, dataset in datasets.items()},
        junk=finding(_versions(audit.junk, datasets)),
        conflicts=finding(audit.label_conflicts),
        leakage=finding(audit.leaks),
        exact=finding(audit.exact_duplicates),
        near=finding(audit.near_duplicates),
    )


def _pixels(image: AuditedImage, datasets: Mapping[str, Dataset]) -> UInt8[np.ndarray, "h w 3"]:
    return datasets[image.key].images[image.index]


def _versions(group: Group, datasets: Mapping[str, Dataset]) -> list[Group]:
    """Splits `group` into images with equal pixels, the most frequent first."""
    by_pixels = collections.defaultdict(list)
    for image in group:
        by_pixels[_pixels(image, datasets).tobytes()].append(image)
    return sorted((tuple(version) for version in by_pixels.values()), key=len, reverse=True)


def _shown(version: Group, datasets: Mapping[str, Dataset], note: str) -> Version:
    pixels = _pixels(version[0], datasets)
    thumbnail = images.resize(pixels[None], _THUMBNAIL)[0] if len(pixels) > _THUMBNAIL else pixels
    return Version(
        src=html.data_uri(images.encode_png(thumbnail)),
        images=version[:_MAX_NAMES],
        more=max(0, len(version) - _MAX_NAMES),
        labels=tuple(collections.Counter(image.label for image in version).most_common()),
        note=note,
    )
