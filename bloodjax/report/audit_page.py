"""The audit's findings as `audit.json`, for programs, and `index.html`, for people."""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import UInt8

from bloodjax.data import images
from bloodjax.data.audit.audit import Audit, AuditedImage, Group
from bloodjax.data.dataset import Dataset
from bloodjax.io.files import atomic_write, make_folder
from bloodjax.report import html

# What one page shows of each finding, so that it stays below 3 MB; audit.json lists everything.
_MAX_THUMBNAILS = 20
_MAX_NAMES = 4
_THUMBNAIL = 96  # pixels


@dataclasses.dataclass(frozen=True)
class Version:
    """Images with the same pixels, as the page shows them.

    Attributes:
      src: the thumbnail as a data URI.
      images: the first of them.
      more: how many further ones there are.
      labels: how many images each class name has, the commonest first.
      note: what there is to say about them, or "".
    """

    src: str
    pictures: Group
    more: int
    labels: tuple[tuple[str, int], ...]
    note: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """One kind of finding: `total` groups, of which `groups` are shown, as versions."""

    total: int
    groups: tuple[tuple[Version, ...], ...]


def write(
    audit: Audit, datasets: Mapping[str, Dataset], out_dir: str | os.PathLike[str]
) -> pathlib.Path:
    """Writes `audit.json` and the self-contained `index.html` to `out_dir`, made if need be.

    Args:
      audit: the findings.
      datasets: the data sets they are about, for the thumbnails.
      out_dir: a local folder. Files there are replaced whole, never left half-written.

    Returns:
      The page's path.

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
        shown, left = [], _MAX_THUMBNAILS
        for group in groups:
            if left == 0:
                break
            versions = _versions(group, datasets)[:left]
            left -= len(versions)
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
        sizes={key: len(dataset) for key, dataset in datasets.items()},
        junk=finding(_versions(audit.junk, datasets)),
        conflicts=finding(audit.label_conflicts),
        leakage=finding(audit.leakage),
        exact=finding(audit.exact_duplicates),
        near=finding(audit.near_duplicates),
    )


def _pixels(image: AuditedImage, datasets: Mapping[str, Dataset]) -> UInt8[np.ndarray, "h w 3"]:
    return datasets[image.key].images[image.index]


def _versions(group: Group, datasets: Mapping[str, Dataset]) -> list[Group]:
    """The images of `group`, those with the same pixels together, the commonest first."""
    alike = collections.defaultdict(list)
    for image in group:
        alike[_pixels(image, datasets).tobytes()].append(image)
    return sorted((tuple(version) for version in alike.values()), key=len, reverse=True)


def _shown(version: Group, datasets: Mapping[str, Dataset], note: str) -> Version:
    pixels = _pixels(version[0], datasets)
    thumbnail = images.resize(pixels[None], _THUMBNAIL)[0] if len(pixels) > _THUMBNAIL else pixels
    return Version(
        src=html.data_uri(images.encode_png(thumbnail)),
        pictures=version[:_MAX_NAMES],
        more=max(0, len(version) - _MAX_NAMES),
        labels=tuple(collections.Counter(image.label for image in version).most_common()),
        note=note,
    )
