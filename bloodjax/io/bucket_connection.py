"""Connections to GCS and S3. The only module that imports fsspec and its file systems.

Endpoint and credentials are the ones that the libraries of Google and Amazon look for:
`AWS_ENDPOINT_URL`, `STORAGE_EMULATOR_HOST`, `AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`
and so on. The libraries repeat requests that fail for a reason that may pass.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from bloodjax.errors import UserError
from bloodjax.io import bucket_errors, bucket_urls, files

# Seconds without an answer, or without a byte of one, after which a request fails.
TIMEOUT = 30.0
# Times that a request to S3 is sent before it fails; gcsfs has 6.
TRIES = 3
# Requests at a time.
PARALLEL = 16

# Variables on which the connection depends.
_ENVIRONMENT = re.compile(
    "(AWS_|GOOGLE_|GCE_|CLOUDSDK_|FSSPEC_)|(STORAGE_EMULATOR_HOST|NO_GCE_CHECK|HOME)$"
)


def file_system(url: str) -> Any:
    """The file system of fsspec for a URL; a new one if the environment has changed.

    Raises:
      UserError: The libraries are not installed, or find no valid credentials.
    """
    variables = tuple(sorted(item for item in os.environ.items() if _ENVIRONMENT.match(item[0])))
    with explained(url):
        try:
            return _connection(bucket_urls.split(url).scheme, variables, TIMEOUT, TRIES)
        except ImportError as error:
            raise UserError(
                f"{url}: buckets need the extra [remote]: pip install 'bloodjax[remote]' ({error})"
            ) from error


@contextlib.contextmanager
def explained(url: str, *, writing: bool = False) -> Iterator[None]:
    """In the body, each error of a library becomes a `UserError` of one line that names `url`.

    A full local disk stays an `OSError`, and a library that is not installed an `ImportError`.

    Args:
      url: The object or folder that the body is about.
      writing: Whether the body writes it. What is missing then is the bucket.
    """
    try:
        yield
    except (UserError, ImportError):
        raise
    except Exception as error:
        if files.disk_full_reason(error) is not None:
            raise
        scheme, bucket, _ = bucket_urls.split(url)
        where = bucket_urls.endpoint(url)
        if writing and bucket_errors.is_missing(error):
            reason = bucket_errors.no_bucket(bucket, where)
        else:
            reason = bucket_errors.reason(error, scheme, bucket, where, TIMEOUT)
        raise UserError(f"{url}: {reason}") from error


@functools.lru_cache(maxsize=8)
def _connection(
    scheme: str, variables: tuple[tuple[str, str], ...], timeout: float, tries: int
) -> Any:
    make = _file_system_class(scheme)
    # The libraries log the errors that they raise, with tracebacks.
    for library in ("gcsfs", "s3fs"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": timeout,
            "read_timeout": timeout,
            "max_pool_connections": 2 * PARALLEL,
            "retries": {"mode": "standard", "max_attempts": tries},
        }
        system = make(**options)
        system.retries = 2  # botocore repeats each of them
        return system
    import aiohttp  # what gcsfs sends requests with

    options["requests_timeout"] = aiohttp.ClientTimeout(
        total=None, sock_connect=timeout, sock_read=timeout
    )
    known = dict(variables)
    if known.get("STORAGE_EMULATOR_HOST") and not known.get("GOOGLE_APPLICATION_CREDENTIALS"):
        # Without a token, gcsfs would wait seconds for Google's metadata server.
        options["token"] = "anon"
    return make(**options)


def _file_system_class(scheme: str) -> Callable[..., Any]:
    # fsspec and its file systems are an extra, and slow to import.
    import fsspec

    # By default gcsfs asks a second endpoint, over gRPC, whether a bucket is a zonal one. Behind a
    # firewall that blocks the endpoint, this takes a minute. Users of zonal buckets set "true".
    zonal = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
    if scheme == "gs" and os.environ.setdefault(zonal, "false") == "false":
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem
    return fsspec.get_filesystem_class(scheme)
