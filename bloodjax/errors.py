"""Exceptions: `UserError` (bad input, exit status 2) and `Stopped` (clean stop after a signal).

Also what becomes of those that Python ignores.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator


class UserError(Exception):
    """A mistake in what the user gave: a file, a flag, a config value.

    The message is one line that names what is wrong and where, what was found, and what is
    expected. The commands print it and exit with status 2, without a traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


class Stopped(Exception):
    """A signal stopped the run, which had time to save or had nothing to save.

    Attributes:
      signal: Number of the signal; a command exits with status 128 + signal.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal

    def __reduce__(self):
        """Both arguments, so that it can be raised in another process."""
        return type(self), (str(self), self.signal)


@contextlib.contextmanager
def handling_ignored(handle: Callable[[BaseException | None], bool]) -> Iterator[None]:
    """Handles exceptions that Python ignores and prints, unless `handle` returns False.

    Python ignores them in callbacks of its garbage collector (JAX has one), in those of C libraries
    and in `__del__`.
    """
    outer = sys.unraisablehook

    def hook(unraisable) -> None:
        if not handle(unraisable.exc_value):
            outer(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:
            sys.unraisablehook = outer


def did_you_mean(word: str, known: Iterable[str], form: str = "{}") -> str:
    """The end of an error about an unknown word: the nearest known one, or all of them.

    Args:
      word: What was given.
      known: What is allowed.
      form: How to write each of them, such as `"--{}"`.
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, 1, cutoff=0.5)
    if near:
        return f"did you mean {form.format(near[0])}?"
    return f"expected one of {', '.join(map(form.format, known))}"
