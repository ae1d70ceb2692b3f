"""The largest batch that fits a device's memory, with few compilations.

A step's memory is nearly affine in its batch: parameters, moments and images, and the maps of each
image. Two batches give the line, and a third one confirms what it predicts. Batches of whole tiles
are tried, because others have padded maps, or other kernels, and may take more than a larger batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

_TRIES = 3
# Of the memory that the line leaves: the maps of larger batches are laid out differently.
_CAUTION = 0.98
# Most times that the first guess is the known batch: memory may grow faster than it seems to, as a
# TPU keeps the maps of a small batch on the chip.
_LEAP = 16


def largest(
    known: Mapping[int, int],
    limit: int,
    multiple: int,
    most: int,
    compile_for: Callable[[int], int],
    *,
    tile: int = 1,
    fixed: int = 0,
) -> tuple[int | None, dict[int, int]]:
    """Searches the largest batch whose peak of memory is at most `limit`.

    Args:
      known: Batch size -> peak of memory in bytes, of at least one batch.
      limit: Memory in bytes.
      multiple: The batch is a multiple of this.
      most: The largest batch of interest, such as all training images.
      compile_for: Gives the peak of another batch. It is called at most three times.
      tile: The batch is a multiple of this, too, unless it is smaller.
      fixed: Bytes that do not depend on the batch, as far as known.

    Returns:
      The largest batch that was compiled and fits, or None if none does; and all peaks.
    """
    peaks = dict(known)
    for _ in range(_TRIES):
        batch = _rounded(_next(peaks, limit, fixed), math.lcm(multiple, tile), most, multiple)
        if batch in peaks:
            break
        peaks[batch] = compile_for(batch)
    fitting = [batch for batch, peak in peaks.items() if peak <= limit]
    return max(fitting, default=None), peaks


def extrapolated(peak: int, fixed: int, batch: int, limit: int, multiple: int, most: int) -> int:
    """The largest batch that fits, if memory beyond `fixed` is proportional to the batch.

    Args:
      peak: Peak of memory in bytes of `batch`.
      fixed: Bytes of it that do not depend on the batch.
      batch: The batch size that was compiled.
      limit: Memory in bytes.
      multiple: The batch is a multiple of this.
      most: The largest batch of interest.

    Returns:
      The batch size; 0 if not even the fixed part fits.
    """
    each = max(peak - fixed, 1) / batch
    return int(min(max(limit - fixed, 0) / each, most)) // multiple * multiple


def _next(peaks: Mapping[int, int], limit: int, fixed: int) -> float | int:
    """About the batch to try next."""
    batches = sorted(peaks)
    if len(batches) == 1:
        (batch,) = batches
        growing = max(peaks[batch] - fixed, 1)
        guess = _CAUTION * batch * max(limit - fixed, 0) / growing
        if peaks[batch] <= limit:
            return min(max(guess, 2 * batch), _LEAP * batch)
        return min(guess, batch / 2)
    fitting = [batch for batch in batches if peaks[batch] <= limit]
    failing = [batch for batch in batches if peaks[batch] > limit]
    # The two batches on both sides of the limit, or the two next to it.
    if fitting and failing:
        low, high = fitting[-1], failing[0]
    else:
        low, high = batches[-2:] if fitting else batches[:2]
    slope = (peaks[high] - peaks[low]) / (high - low)
    if slope <= 0:
        return high
    return low + _CAUTION * (limit - peaks[low]) / slope


def _rounded(batch: float | int, tile: int, most: int, multiple: int) -> int:
    """The multiple of `tile`, or else of `multiple`, that is at most `batch` and `most`."""
    batch = int(min(batch, most))
    return max(batch // tile * tile or batch // multiple * multiple, multiple)
