"""Downloads from the Hugging Face Hub; the only module that imports huggingface_hub."""

from __future__ import annotations

import pathlib

import huggingface_hub

from bloodjax.errors import UserError


def fetch(repository: str, file: str, revision: str | None) -> pathlib.Path:
    """Returns the path of a file, after downloading it unless it is cached.

    Args:
      repository: OWNER/NAME.
      file: its path in the repository.
      revision: branch, tag or commit; None for the main branch.

    Raises:
      UserError: it is not cached and cannot be downloaded: no network, no such file, or a gated
        repository.
    """
    try:
        # A cached file must work offline, so do not ask the Hub whether it is the latest.
        return pathlib.Path(
            huggingface_hub.hf_hub_download(
                repository, file, revision=revision, local_files_only=True
            )
        )
    except Exception:  # not cached, in whatever way this version of the library says so
        pass
    address = huggingface_hub.hf_hub_url(repository, file, revision=revision)
    # The library would log each retry as a warning; the error below says everything.
    huggingface_hub.utils.logging.set_verbosity_error()
    try:
        # The metadata request fails at once without a network, whereas the download retries.
        huggingface_hub.get_hf_file_metadata(address)
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        # The library passes on the exceptions of its HTTP client, which differs between versions,
        # so there is no narrower class to catch.
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"hf:{repository}: {file} could not be downloaded ({reason}): download {address} on a "
            "machine with network access, and pass the file with --config.model.weights=FILE "
            "(convert: --weights=FILE)"
        ) from error


def revision(path: pathlib.Path) -> str:
    """Returns the commit of a file in the cache; "" if its path does not contain it."""
    _, found, rest = path.as_posix().rpartition("/snapshots/")
    return rest.partition("/")[0] if found else ""
