"""What a failed request to a bucket means, in one line.

The libraries of Google and Amazon pass on the exceptions of the HTTP clients beneath them, which
differ between versions, so classes are recognised by their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_LONGEST = 200  # characters of a library's message

# Names of exceptions of botocore, google.auth, aiohttp, requests and Python.
_TIMEOUTS = {"TimeoutError", "ReadTimeoutError", "ConnectTimeoutError", "FSTimeoutError"}
_DROPS = {
    *("EndpointConnectionError", "ClientConnectorError", "ClientConnectionError"),
    *("ConnectionError", "HTTPClientError", "ClientPayloadError", "IncompleteRead"),
    *("ServerDisconnectedError", "ConnectionClosedError"),
}
_NO_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "RefreshError"),
    *("CredentialRetrievalError", "TokenRetrievalError", "DefaultCredentialsError"),
    *("NonRetryableError", "SSOTokenLoadError", "UnauthorizedSSOTokenError"),
}
_WHERE_FROM = {
    "gs": "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS=FILE",
    "s3": "aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
}
# What S3 and GCS answer if the object is not in the state that a write expects.
_CONFLICTS = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey"}

MISSING = "no such object or folder in the bucket"


def no_bucket(bucket: str, endpoint: str) -> str:
    """The words for a bucket that does not exist."""
    return f"no bucket {bucket} at {endpoint}"


def reason(error: BaseException, scheme: str, bucket: str, endpoint: str, timeout: float) -> str:
    """What went wrong, and where the user can change it what was expected.

    Args:
      error: What a library raised.
      scheme: "gs" or "s3".
      bucket: Name of the bucket.
      endpoint: Where the request was sent.
      timeout: Seconds that it waited for an answer.
    """
    kinds, codes, text = _kinds(error), set(map(_code, _causes(error))), _text(error)
    if "NoSuchBucket" in codes:
        return no_bucket(bucket, endpoint)
    if kinds & _NO_CREDENTIALS or "401" in codes:
        return f"no valid credentials ({text}), expected {_WHERE_FROM[scheme]}"
    if "PermissionError" in kinds or "403" in codes or text.startswith("Forbidden"):
        return f"{endpoint} refuses it ({text}), expected credentials with the right to it"
    if is_missing(error):
        return MISSING
    if kinds & _TIMEOUTS:
        return f"no answer from {endpoint} for {timeout:g} s, several times; try again"
    if is_dropped(error):
        return f"{dropped(error, endpoint)}, several times"
    return f"{endpoint} failed ({type(error).__name__}: {text})"


def dropped(error: BaseException, endpoint: str) -> str:
    """The words for an error that `is_dropped`."""
    return f"the connection to {endpoint} failed ({_text(error)})"


def is_dropped(error: BaseException) -> bool:
    """Whether the connection was not made or was closed early. A time-out is neither."""
    kinds = _kinds(error)
    return bool(kinds & _DROPS) and not kinds & _TIMEOUTS


def is_missing(error: BaseException) -> bool:
    """Whether there is no such object, or no such bucket."""
    return "FileNotFoundError" in _kinds(error) or "404" in map(_code, _causes(error))


def is_conflict(error: BaseException) -> bool:
    """Whether a write was refused because the object is not in the state that it expects."""
    return "FileExistsError" in _kinds(error) or any(
        _code(cause) in _CONFLICTS for cause in _causes(error)
    )


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LONGEST] or type(error).__name__


def _code(error: BaseException) -> str:
    """The code of an answer, such as "NoSuchBucket" or "404"; "" if there is none."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(error, "code", "") or getattr(error, "status", "") or "")


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
