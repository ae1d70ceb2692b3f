"""Images for datasets of Hugging Face, and a library that does not reach the network."""

import numpy as np
import pytest

from bloodjax.data import images


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No test may reach the network, or see the cache of whoever runs it."""
    datasets = pytest.importorskip("datasets", reason="needs the extra hf-datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def pictures():
    """Encoded images of 16x16 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    return [images.encode_png(each) for each in pixels]
