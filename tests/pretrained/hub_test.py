"""Tests of bloodjax/pretrained/hub.py, without a network."""

import huggingface_hub
import huggingface_hub.errors
import pytest

from bloodjax.errors import UserError
from bloodjax.pretrained import hub


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Records the downloads; `calls.cached` sets whether the file is cached."""

    class Calls(list):
        cached, error = True, None

    calls = Calls()

    def download(repository, file, *, revision=None, local_files_only=False):
        calls.append((repository, file, revision, local_files_only))
        if local_files_only and not calls.cached:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        if not local_files_only and calls.error:
            raise calls.error
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda address: None)
    return calls


def test_a_cached_file_needs_no_network(calls, tmp_path):
    assert hub.fetch("timm/a", "model.safetensors", "v1") == tmp_path / "model.safetensors"
    assert calls == [("timm/a", "model.safetensors", "v1", True)]


def test_another_is_downloaded(calls, tmp_path):
    calls.cached = False
    assert hub.fetch("timm/a", "b.bin", None) == tmp_path / "b.bin"
    assert calls[1:] == [("timm/a", "b.bin", None, False)]


@pytest.mark.parametrize(
    "error",
    [
        huggingface_hub.errors.OfflineModeIsEnabled(
            "offline mode is enabled\nunset HF_HUB_OFFLINE"
        ),
        huggingface_hub.errors.LocalEntryNotFoundError("no connection"),
        huggingface_hub.errors.EntryNotFoundError("404 Client Error.\n\nEntry Not Found"),
        ConnectionError(""),
        ValueError("the client's own"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_download_says_how_to_pass_the_file(calls, error):
    calls.cached, calls.error = False, error
    with pytest.raises(UserError) as caught:
        hub.fetch("timm/a", "model.safetensors", "v1")
    message = str(caught.value)
    assert "\n" not in message
    assert "/timm/a/resolve/v1/model.safetensors" in message
    assert "https://" in message
    assert "--config.model.weights=FILE" in message


def test_offline_the_library_itself_fails_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"hf:timm/a: model\.safetensors could not be downloaded"):
        hub.fetch("timm/a", "model.safetensors", None)


def test_an_unreachable_file_is_requested_once(calls, monkeypatch):
    asked = []

    def unreachable(address):
        asked.append(address)
        raise ConnectionError("Name or service not known")

    calls.cached = False
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(UserError, match=r"could not be downloaded \(Name or service not known\)"):
        hub.fetch("timm/a", "model.safetensors", None)
    assert len(asked) == len(calls) == 1  # the only call was to the cache


@pytest.fixture
def uploads(monkeypatch):
    """What `push` asks of the Hub; `uploads.error` is raised by the upload."""

    class Uploads(list):
        error = None

    uploads = Uploads()

    class Api:
        def create_repo(self, repository, **options):
            uploads.append(("create", repository, options))
            return f"https://huggingface.co/{repository}"

        def upload_folder(self, *, repo_id, folder_path, **_):
            if uploads.error:
                raise uploads.error
            uploads.append(("upload", repo_id, folder_path))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_fake")
    return uploads


def test_push_uploads_to_a_repository_that_is_private_if_new(uploads, tmp_path):
    assert hub.push(tmp_path, "lab/cells") == "https://huggingface.co/lab/cells"
    assert uploads == [
        ("create", "lab/cells", {"private": True, "exist_ok": True}),
        ("upload", "lab/cells", tmp_path),
    ]


def test_a_refused_push_is_one_line_that_says_how_to_upload_later(uploads, tmp_path):
    uploads.error = ConnectionError("403 Forbidden: you may not write.\nRequest ID: 1")
    with pytest.raises(UserError) as caught:
        hub.push(tmp_path, "lab/cells")
    assert str(caught.value) == (
        "--push=lab/cells: the upload failed (403 Forbidden: you may not write); "
        f"{tmp_path} is complete, and `hf upload lab/cells {tmp_path} --exclude='compiled/*' "
        "--exclude='evaluate/*'` uploads it later"
    )


@pytest.mark.parametrize("name", ["cells", "a/b/c", "a/..", "lab/ce lls", "lab/cells?", "", "/a"])
def test_a_malformed_repository_is_refused_without_the_network(uploads, name):
    with pytest.raises(UserError, match=r"^--push=.*: expected OWNER/NAME, a repository"):
        hub.check_push(name, "--push")
    assert uploads == []


def test_a_push_without_a_token_is_refused_without_the_network(uploads, monkeypatch):
    hub.check_push("lab/cells", "--push")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"no token of the Hugging Face Hub .* HF_TOKEN"):
        hub.check_push("lab/cells", "--push")
    assert uploads == []


def card(**changes):
    facts = {
        "name": "cells",
        "licence": "apache-2.0",
        "base_model": "hf:timm/resnet50.a1_in1k@abc:model.safetensors",
        "tags": ["cytology"],
        "dataset": ("My cells: 2 [a]", "test"),
        "metrics": {"accuracy": ("Accuracy", 0.5)},
    }
    return huggingface_hub.ModelCard(hub.model_card("# cells\n", **(facts | changes)))


def test_a_model_card_has_metadata_that_the_library_reads_back():
    found = card()
    assert found.text.strip() == "# cells"
    data = found.data
    assert (data.license, data.base_model) == ("apache-2.0", "timm/resnet50.a1_in1k")
    assert (data.library_name, data.pipeline_tag) == ("bloodjax", "image-classification")
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_type) == ("My cells: 2 [a]", "my-cells-2-a")
    assert (result.dataset_split, result.metric_type, result.metric_value) == (
        "test",
        "accuracy",
        0.5,
    )


@pytest.mark.parametrize(
    ("licence", "stated"),
    [
        ("", {}),
        ("BSD-3-Clause", {"license": "bsd-3-clause"}),
        ("My-Licence-1", {"license": "other", "license_name": "my-licence-1"}),
    ],
)
def test_a_model_card_states_a_licence_that_the_hub_knows_or_names_another(licence, stated):
    data = card(licence=licence, base_model="", metrics={}).data.to_dict()
    assert {key: data[key] for key in data if key.startswith("license")} == stated
    assert "base_model" not in data
    assert "model-index" not in data
