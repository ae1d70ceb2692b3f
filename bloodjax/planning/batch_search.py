"""The largest batch that fits a device's memory, with few compilations.

A step's memory is nearly affine in its batch: parameters, moments and images, and the maps of each
image. Two batches give the line, and a third one confirms what it predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

_TRIES = 3
# Of the memory that the line leaves: the maps of larger batches are laid out differently.
_CAUTION = 0.98


def largest(
    known: Mapping[int, int],
    limit: int,
    multiple: int,
    most: int,
    compile_for: Callable[[int], int],
) -> tuple[int | None, dict[int, int]]:
    """Searches the largest batch whose peak of memory is at most `limit`.

    Args:
      known: Batch size -> peak of memory in bytes, of at least one batch.
      limit: Memory in bytes.
      multiple: The batch is a multiple of this.
      most: The largest batch of interest, such as all training images.
      compile_for: Gives the peak of another batch. It is called at most three times.

    Returns:
      The largest batch that was compiled and fits, or None if none does; and all peaks.
    """
    peaks = dict(known)
    for _ in range(_TRIES):
        batch = _next(peaks, limit, multiple, most)
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
    return _rounded((limit - fixed) / each, multiple, most, least=0)


def _next(peaks: Mapping[int, int], limit: int, multiple: int, most: int) -> int:
    """The batch to try next."""
    batches = sorted(peaks)
    if len(batches) == 1:
        (batch,) = batches
        # Memory grows at most in proportion to the batch.
        guess = batch * limit / max(peaks[batch], 1)
        if peaks[batch] <= limit:
            return _rounded(max(guess, 2 * batch), multiple, most)
        return _rounded(min(guess, batch / 2), multiple, most)
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
    guess = low + _CAUTION * (limit - peaks[low]) / slope
    return _rounded(guess, multiple, most)


def _rounded(batch: float | int, multiple: int, most: int, least: int | None = None) -> int:
    """The multiple below `batch`, at most `most` and at least `least` (by default `multiple`)."""
    return max(int(min(batch, most)) // multiple * multiple, multiple if least is None else least)
