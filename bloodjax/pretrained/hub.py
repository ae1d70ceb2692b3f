"""Files and model cards of the Hugging Face Hub; the only module that imports huggingface_hub."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence

import huggingface_hub
import huggingface_hub.errors

from bloodjax.errors import UserError

# Licences that the Hub knows by the SPDX identifiers that pretrained weights have here.
_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "cc0-1.0", "unlicense"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
)


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
        raise UserError(
            f"hf:{repository}: {file} could not be downloaded ({_reason(error)}): download "
            f"{address} on a machine with network access, and the repository's config.json into "
            "the same folder, and pass the file with --config.model.weights=FILE (convert: "
            "--weights=FILE)"
        ) from error


def revision(path: pathlib.Path) -> str:
    """Returns the commit of a file in the cache; "" if its path does not contain it."""
    _, found, rest = path.as_posix().rpartition("/snapshots/")
    return rest.partition("/")[0] if found else ""


def check_push(repository: str, flag: str) -> None:
    """Checks what can be checked of an upload without the network, before anything is computed.

    Args:
      repository: OWNER/NAME.
      flag: name of the flag that it is the value of.

    Raises:
      UserError: the name is malformed, or there is no token.
    """
    try:
        huggingface_hub.utils.validate_repo_id(repository)
        is_valid = re.fullmatch(r"[\w.-]+/[\w.-]+", repository, re.ASCII) is not None
    except huggingface_hub.errors.HFValidationError:
        is_valid = False
    if not is_valid:
        raise UserError(f"{flag}={repository}: expected OWNER/NAME, a repository of the Hub")
    if not huggingface_hub.get_token():
        raise UserError(
            f"{flag}={repository}: no token of the Hugging Face Hub is on this machine; expected "
            "one that may write, from `hf auth login` or in HF_TOKEN"
        )


def push(folder: pathlib.Path, repository: str) -> str:
    """Uploads a folder as one commit; a repository that does not exist is made, as a private one.

    Args:
      folder: folder with the files of a model.
      repository: OWNER/NAME.

    Returns:
      The address of the repository.

    Raises:
      UserError: the Hub cannot be reached, or refuses.
    """
    try:
        api = huggingface_hub.HfApi()
        address = api.create_repo(repository, private=True, exist_ok=True)
        huggingface_hub.utils.disable_progress_bars()
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Exported by bloodjax",
            # What commands that use the folder write into it has names of images.
            ignore_patterns=["compiled/*", "evaluate/*"],
        )
        return str(address)
    except Exception as error:  # as in `fetch`
        raise UserError(
            f"--push={repository}: the upload failed ({_reason(error)}); {folder} is complete, and "
            f"`hf upload {repository} {folder} --exclude='compiled/*' --exclude='evaluate/*'` "
            "uploads it later"
        ) from error


def model_card(
    text: str,
    *,
    name: str,
    licence: str,
    base_model: str,
    tags: Sequence[str],
    dataset: tuple[str, str],
    metrics: Mapping[str, tuple[str, float]],
) -> str:
    """A model card: the text after YAML metadata that the Hub understands.

    Args:
      text: Markdown.
      name: name of the model.
      licence: SPDX identifier; empty if it is not known, and then the card has none.
      base_model: location of the weights that training started from. It is named if it is on the
        Hub.
      tags: words to find the model by.
      dataset: name of the images that the metrics are of, and of their split.
      metrics: metric's identifier on the Hub -> its name, and its value.

    Returns:
      The content of `README.md`.
    """
    named = {"license": licence.lower()} if licence.lower() in _LICENCES else {}
    if licence and not named:
        named = {"license": "other", "license_name": licence.lower()}
    on_hub = re.match(r"hf:([^@:]+)", base_model)
    results = [
        huggingface_hub.EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", dataset[0].lower()).strip("-") or "images",
            dataset_name=dataset[0],
            dataset_split=dataset[1],
            metric_type=metric,
            metric_name=title,
            metric_value=value,
        )
        for metric, (title, value) in metrics.items()
    ]
    data = huggingface_hub.ModelCardData(
        **named,
        base_model=on_hub[1] if on_hub else None,
        library_name="bloodjax",
        pipeline_tag="image-classification",
        tags=list(tags),
        metrics=list(metrics) or None,
        model_name=name,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _reason(error: Exception) -> str:
    """The first line of an error's message, or its type if it has none."""
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
