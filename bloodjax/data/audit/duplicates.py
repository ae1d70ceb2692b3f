"""Exact duplicates (equal pixels) and near duplicates (two versions of one image)."""

from __future__ import annotations

import collections
from collections.abc import Iterator

import numpy as np
import scipy
from jaxtyping import Float32, Int, UInt8, UInt64

# Height and width of the thumbnails that are compared, and of the codes that propose pairs.
THUMBNAIL = 48
_CODE = 16

# Cosine of two codes above which a pair is proposed. After a shift by 2 % of the side it is 0.9 or
# more.
_PROPOSE = 0.88
# Correlation of fine structure above which a pair is accepted. Different cells among 13,671 reach
# 0.87 (two lone platelets, one mirrored). A copy that is shifted by 3 %, blurred by 1.5 of 96
# pixels or saved as JPEG with quality 25 has at least 0.92.
_ACCEPT = 0.9

# Random pairs that show how alike different images are, and how few of them show nothing.
_SAMPLED_PAIRS = 4000
_MIN_PAIRS = 200
_SAMPLED_LINKS = 500  # of these within groups, which are compared in all orientations
# Pairs of different images that `_ACCEPT` may be expected to accept, per image: the power law
# expects more than there are. Among 13,671 real cells it expects 43, and there are none.
_FEW = 0.02
# Expected number of such pairs, in all of the data, that a higher limit accepts.
_CHANCE = 0.1
# Fraction of the pairs in a group that are similar, above which it is versions of one image.
_TIGHT = 0.9
# Rounding makes equal images as different as this.
_MIN_DISTANCE = 0.005

_ORIENTATIONS = 8  # quarter turns, each also mirrored
_ROWS = 1024  # images per block; bounds the memory of the pairwise comparison


def exact_ids(hashes: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For each image, the index of the first image with the same pixels.

    Args:
      hashes: Hash of each image's pixels, see `fingerprint.of_images`.
    """
    _, first, distinct = np.unique(hashes, return_index=True, return_inverse=True)
    return first[distinct].astype(np.int64)


def near_ids(thumbnails: UInt8[np.ndarray, "n 48 48 3"]) -> Int[np.ndarray, " n"]:
    """For each image, a number that it shares with exactly its near duplicates.

    Near duplicates are versions of an image that were saved again as JPEG, changed in brightness
    or tint, slightly blurred or noisy, resized, or shifted or zoomed by up to about 3 % of the
    side; each may also be mirrored or turned by quarter turns. Larger shifts, other angles, other
    crops, and images without structure are not found. A near duplicate of a near duplicate is in
    the same group.

    A blocked matrix product of 16x16 grey codes proposes each image's closest earlier image in
    each of eight orientations (time grows with n^2, memory with n). A pair is accepted if its fine
    structure agrees too: the phase-shifted correlation of band-passed thumbnails with normalised
    local contrast. It distinguishes cells that only share size, position and darkness.

    Different images with little structure, such as round cells on black, agree in fine structure
    by chance. How often they do follows from random pairs of the same images. If that is more than
    one pair for every fifty images, the limit rises until chance explains none.

    Args:
      thumbnails: Images resized to 48x48, no two of them identical.
    """
    n = len(thumbnails)
    codes = np.empty((n, _CODE, _CODE), np.float32)
    details = np.empty((n, THUMBNAIL, THUMBNAIL), np.float32)
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        grey = thumbnails[rows] @ np.full(3, 1 / 3, np.float32)
        codes[rows], details[rows] = _codes(grey), _details(grey)
    found = [np.empty((3, 0))]
    for turn in range(_ORIENTATIONS):
        for later, earlier in _proposals(codes, turn):
            same = _correlation(details[later], _turned(details[earlier], turn))
            accepted = same > _ACCEPT
            found.append(np.stack([later, earlier, same])[:, accepted])
    links = np.concatenate(found, axis=1)
    ids = _connected(links, n)
    limit = _chance_limit(details, ids) if links.size else _ACCEPT
    return _connected(links[:, links[2] > limit], n) if limit > _ACCEPT else ids


def groups(ids: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " _"]]:
    """The groups of indices with the same id, in the order of their first index."""
    members = collections.defaultdict(list)
    for i, number in enumerate(ids.tolist()):
        members[number].append(i)
    return [np.array(group) for group in members.values()]


def _codes(grey: Float32[np.ndarray, "n 48 48"]) -> Float32[np.ndarray, "n 16 16"]:
    """Means over a 16x16 grid, with zero mean and unit norm; zeros for a blank image."""
    step = THUMBNAIL // _CODE
    codes = grey.reshape(-1, _CODE, step, _CODE, step).mean((2, 4))
    return _unit(codes - codes.mean((1, 2), keepdims=True))


def _details(grey: Float32[np.ndarray, "n 48 48"]) -> Float32[np.ndarray, "n 48 48"]:
    """Structures of 2 to 8 pixels, with normalised local contrast, a faded border and unit norm."""
    band = _blur(grey, 0.7) - _blur(grey, 2.0)
    contrast = np.sqrt(np.maximum(_blur(band**2, 2.0), 0))
    overall = band.std((1, 2), keepdims=True)
    fade = np.sqrt(np.hanning(THUMBNAIL + 2)[1:-1]).astype(np.float32)
    return _unit(band / (contrast + 0.3 * overall + 1e-3) * fade[:, None] * fade)


def _blur(x: Float32[np.ndarray, "n s s"], sigma: float) -> Float32[np.ndarray, "n s s"]:
    kernel = scipy.ndimage.gaussian_filter1d(np.eye(x.shape[1], dtype=np.float32), sigma, axis=0)
    return kernel @ x @ kernel.T


def _unit(x: Float32[np.ndarray, "n s s"]) -> Float32[np.ndarray, "n s s"]:
    return x / np.maximum(np.linalg.norm(x, axis=(1, 2), keepdims=True), 1e-6)


def _turned(x: Float32[np.ndarray, "n s s"], turn: int) -> Float32[np.ndarray, "n s s"]:
    """Turns `turn` % 4 quarter turns, and mirrors if `turn` is 4 or more."""
    x = np.rot90(x, turn % 4, axes=(1, 2))
    return x[:, :, ::-1] if turn >= 4 else x


def _proposals(
    codes: Float32[np.ndarray, "n 16 16"], turn: int
) -> Iterator[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]]:
    """Yields blocks of pairs (later, earlier): each image with its closest earlier one, turned.

    One pair per image suffices, because groups are connected components.
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


def _connected(links: np.ndarray, n: int) -> Int[np.ndarray, " n"]:
    """Ids of the connected components of pairs (first two rows of `links`) of `n` images."""
    later, earlier = links[:2].astype(np.int64)
    graph = scipy.sparse.coo_array((np.ones(len(later), bool), (later, earlier)), shape=(n, n))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1].astype(np.int64)


def _chance_limit(details: Float32[np.ndarray, "n 48 48"], ids: Int[np.ndarray, " n"]) -> float:
    """The correlation above which chance is not expected to bring any two different images.

    Among different images, the number of pairs that are closer than a distance d grows like d^k,
    where k is the number of ways in which the images vary. Random pairs in random orientations
    tell k and the scale; the power law extends them to all pairs. Images that were found to be
    versions of one image, all of them close to each other, are not compared with one another.

    Args:
      details: Output of `_details`.
      ids: Groups of images that `_ACCEPT` would make.

    Returns:
      `_ACCEPT`, or a larger number below 1.
    """
    n = len(details)
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, n, (2, _SAMPLED_PAIRS))
    turn = rng.integers(0, _ORIENTATIONS, _SAMPLED_PAIRS)
    distance = np.empty(_SAMPLED_PAIRS)
    for t in range(_ORIENTATIONS):
        k = turn == t
        distance[k] = _distance(_correlation(details[one[k]], _turned(details[other[k]], t)))
    accepted = _distance(_ACCEPT)
    # A group of versions of one image is tight. Different images that are linked by chance form
    # long chains, in which most pairs are not similar.
    together = np.flatnonzero(ids[one] == ids[other])
    few = together[:_SAMPLED_LINKS]
    nearest = np.full(len(few), np.inf)
    for t in range(_ORIENTATIONS):
        same = _correlation(details[one[few]], _turned(details[other[few]], t))
        nearest = np.minimum(nearest, _distance(same))
    group = ids[one[few]]
    close = np.bincount(group, nearest < 1.5 * accepted, minlength=n)
    is_tight = close > _TIGHT * np.bincount(group, minlength=n)
    is_different = one != other
    is_different[together] &= ~is_tight[ids[one[together]]]
    different = distance[is_different]
    if len(different) < _MIN_PAIRS:
        return _ACCEPT
    near, far = np.quantile(different, [0.01, 0.1])
    ways = np.log(10) / max(np.log(far / max(near, 1e-6)), 1e-6)
    total = 0.1 * _ORIENTATIONS * n * (n - 1) / 2  # pairs that are closer than `far`
    if far <= 0 or total * (accepted / far) ** ways <= max(1, _FEW * n):
        return _ACCEPT
    limit = min(far * (_CHANCE / total) ** (1 / ways), accepted)
    return 1 - max(limit, _MIN_DISTANCE) ** 2 / 2


def _distance(correlation: np.ndarray | float) -> np.ndarray | float:
    """Distance of two vectors of unit norm with this scalar product."""
    return np.sqrt(2 * np.maximum(1 - np.asarray(correlation), 0))


def _correlation(
    a: Float32[np.ndarray, "m 48 48"], b: Float32[np.ndarray, "m 48 48"]
) -> Float32[np.ndarray, " m"]:
    """Highest circular correlation over shifts of up to 2 pixels, in steps of half a pixel."""
    product = scipy.fft.fft2(a, workers=-1) * scipy.fft.fft2(b, workers=-1).conj()
    shifts = np.arange(-2, 2.25, 0.5)
    waves = np.exp(2j * np.pi * np.outer(shifts, scipy.fft.fftfreq(THUMBNAIL)))
    waves = waves.astype(np.complex64) / THUMBNAIL
    return (waves @ product @ waves.T).real.max((1, 2), initial=-1)
