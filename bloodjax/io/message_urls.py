"""URLs in messages, in place of the paths of their local copies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from bloodjax.errors import UserError

# Path of each local copy -> URL.
_urls: dict[str, str] = {}


def add(path: str | os.PathLike[str], url: str) -> None:
    """From now on, `with_urls` replaces a path by a URL."""
    _urls[os.fspath(path)] = url


def remove(path: str | os.PathLike[str]) -> None:
    """From now on, `with_urls` keeps a path."""
    _urls.pop(os.fspath(path), None)


def with_urls(message: str) -> str:
    """A message in which each path of a local copy is the URL of the original."""
    for path, url in sorted(_urls.items(), key=lambda item: -len(item[0])):
        message = message.replace(path, url)
    return message


@contextlib.contextmanager
def shown_as(path: str | os.PathLike[str], url: str) -> Iterator[None]:
    """In the body, `with_urls` replaces a path by a URL. A `UserError` of the body has the URL."""
    add(path, url)
    try:
        yield
    except UserError as error:
        error.args = (with_urls(str(error)),)  # it is printed after the path is removed here
        raise
    finally:
        remove(path)
