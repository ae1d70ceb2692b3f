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
