"""The same image twice: identical pixels, or one image that was processed in two ways."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
import scipy.fft
import scipy.sparse
from jaxtyping import Float32, Int, UInt8
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import csgraph

# Side of the thumbnails that near duplicates are compared on, and of the codes that propose pairs.
THUMBNAIL = 48
_CODE = 16

# Proposed: the cosine of two codes. A shift by 2 % of the side leaves 0.9 or more.
_PROPOSE = 0.88
# Accepted: the correlation of fine structure. Among 13,671 blood cells, different ones reach 0.87
# (two lone platelets, one mirrored); a copy that was shifted by 3 %, blurred by 1.5 pixels of 96 or
# saved as a JPEG of quality 25 keeps 0.92.
_ACCEPT = 0.9

_TURNS = 8  # quarter turns and mirror images
_ROWS = 1024  # images a block: bounds the memory of the pairwise comparison


def exact_ids(images: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> Int[np.ndarray, " n"]:
    """For each image, the index of the first one with the same pixels."""
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(np.ascontiguousarray(image).data).digest() for image in images)
    return np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], np.int64)


def near_ids(thumbnails: UInt8[np.ndarray, "n 48 48 3"]) -> Int[np.ndarray, " n"]:
    """For each image, a number that it shares with its near duplicates and with no other.

    Found: an image saved again as a JPEG, made brighter, darker or of another tint, slightly
    blurred or noisy, resized, shifted or zoomed by up to about 3 % of its
    side; each of these also mirrored or turned by quarter turns. Not found: larger shifts, other
    angles, other crops, and images without any structure.

    Each image's closest earlier one in each of the eight orientations is proposed by a blocked
    matrix product of 16x16 grey codes (time grows with n^2, memory with n), and kept when fine
    structure agrees too: the phase-shifted correlation of band-passed thumbnails with evened-out
    local contrast, which tells apart cells that only share size, place and darkness.

    Args:
      thumbnails: images reduced to 48x48, no two of them identical. Chains are followed: a copy
        of a copy belongs to the same group.
    """
    n = len(thumbnails)
    codes = np.empty((n, _CODE, _CODE), np.float32)
    details = np.empty((n, THUMBNAIL, THUMBNAIL), np.float32)
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        grey = thumbnails[rows] @ np.full(3, 1 / 3, np.float32)
        codes[rows], details[rows] = _codes(grey), _details(grey)
    links = [np.empty((2, 0), np.int64)]
    for turn in range(_TURNS):
        for later, earlier in _proposals(codes, turn):
            same = _correlation(details[later], _turned(details[earlier], turn)) > _ACCEPT
            links.append(np.stack([later[same], earlier[same]]))
    later, earlier = np.concatenate(links, axis=1)
    graph = scipy.sparse.coo_array((np.ones(len(later), bool), (later, earlier)), shape=(n, n))
    return csgraph.connected_components(graph, directed=False)[1].astype(np.int64)


def groups(ids: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " _"]]:
    """The indices that share an id, for each id in order of its first index."""
    members = collections.defaultdict(list)
    for i, number in enumerate(ids.tolist()):
        members[number].append(i)
    return [np.array(group) for group in members.values()]


def _codes(grey: Float32[np.ndarray, "n 48 48"]) -> Float32[np.ndarray, "n 16 16"]:
    """16x16 means with zero mean and unit norm; a blank image gives zeros."""
    step = THUMBNAIL // _CODE
    codes = grey.reshape(-1, _CODE, step, _CODE, step).mean((2, 4))
    return _unit(codes - codes.mean((1, 2), keepdims=True))


def _details(grey: Float32[np.ndarray, "n 48 48"]) -> Float32[np.ndarray, "n 48 48"]:
    """Structure of 2 to 8 pixels, its local contrast evened out, faded to the border, unit norm."""
    band = _blur(grey, 0.7) - _blur(grey, 2.0)
    contrast = np.sqrt(np.maximum(_blur(band**2, 2.0), 0))
    overall = band.std((1, 2), keepdims=True)
    fade = np.sqrt(np.hanning(THUMBNAIL + 2)[1:-1]).astype(np.float32)
    return _unit(band / (contrast + 0.3 * overall + 1e-3) * fade[:, None] * fade)


def _blur(x: Float32[np.ndarray, "n s s"], sigma: float) -> Float32[np.ndarray, "n s s"]:
    kernel = gaussian_filter1d(np.eye(x.shape[1], dtype=np.float32), sigma, axis=0)
    return kernel @ x @ kernel.T


def _unit(x: Float32[np.ndarray, "n s s"]) -> Float32[np.ndarray, "n s s"]:
    return x / np.maximum(np.linalg.norm(x, axis=(1, 2), keepdims=True), 1e-6)


def _turned(x: Float32[np.ndarray, "n s s"], turn: int) -> Float32[np.ndarray, "n s s"]:
    """`turn` % 4 quarter turns, then from 4 up a mirror image."""
    x = np.rot90(x, turn % 4, axes=(1, 2))
    return x[:, :, ::-1] if turn >= 4 else x


def _proposals(
    codes: Float32[np.ndarray, "n 16 16"], turn: int
) -> Iterator[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]]:
    """Blocks of pairs (later, earlier): each image with its closest earlier one, turned.

    One earlier image is enough to join a group, however large: no need to list all pairs.
    """
    flat = codes.reshape(len(codes), -1)
    turned = _turned(codes, turn).reshape(len(codes), -1)
    for start in range(0, len(codes), _ROWS):
        block = flat[start : start + _ROWS]
        cosine = block @ turned[: start + len(block)].T
        cosine[:, start:][np.triu_indices(len(block))] = -1
        closest = cosine.argmax(1)
        keep = np.flatnonzero(cosine[np.arange(len(block)), closest] > _PROPOSE)
        yield start + keep, closest[keep]


def _correlation(
    a: Float32[np.ndarray, "m 48 48"], b: Float32[np.ndarray, "m 48 48"]
) -> Float32[np.ndarray, " m"]:
    """The highest circular correlation over shifts of up to 2 pixels, in steps of half a pixel."""
    product = scipy.fft.fft2(a, workers=-1) * scipy.fft.fft2(b, workers=-1).conj()
    shifts = np.arange(-2, 2.25, 0.5)
    waves = np.exp(2j * np.pi * np.outer(shifts, scipy.fft.fftfreq(THUMBNAIL)))
    waves = waves.astype(np.complex64) / THUMBNAIL
    return (waves @ product @ waves.T).real.max((1, 2), initial=-1)
