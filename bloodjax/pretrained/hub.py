"""The door to huggingface_hub: a file of a repository there, from the cache or the network."""

from __future__ import annotations

import pathlib

import huggingface_hub

from bloodjax.errors import UserError


def fetch(repository: str, file: str, revision: str | None) -> pathlib.Path:
    """The path of `file`, downloaded unless the cache has it.

    Args:
      repository: OWNER/NAME.
      file: its path there.
      revision: a branch, tag or commit; None for the main branch.

    Raises:
      UserError: it is neither cached nor to be had: no network, no such file, a gated repository.
    """
    try:
        # What is cached needs no network, not even to ask whether it is the latest.
        return pathlib.Path(
            huggingface_hub.hf_hub_download(
                repository, file, revision=revision, local_files_only=True
            )
        )
    except Exception:  # see below; the network decides
        pass
    address = huggingface_hub.hf_hub_url(repository, file, revision=revision)
    # The error below says it all; the library's warnings are of its retries.
    huggingface_hub.utils.logging.set_verbosity_error()
    try:
        # Asked for once, which says at once that there is no network; the download asks on and on.
        huggingface_hub.get_hf_file_metadata(address)
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except Exception as error:
        # The library lets its HTTP client's exceptions through, and which client that is changes
        # from version to version: there is no narrower class of "could not be had".
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UserError(
            f"hf:{repository}: {file} could not be downloaded ({reason}): fetch {address} where "
            "there is a network, and pass it with --config.model.weights=FILE"
        ) from error


def revision(path: pathlib.Path) -> str:
    """The commit that a fetched file is of; "" where its path does not say."""
    _, found, rest = path.as_posix().rpartition("/snapshots/")
    return rest.partition("/")[0] if found else ""
