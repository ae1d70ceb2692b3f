"""Images in place of those that a config names."""

import json

import numpy as np
import pytest

from bloodjax.data import fingerprint
from bloodjax.data.dataset import Dataset
from bloodjax.training import input_pipeline
from bloodjax.training.input_pipeline import Splits


@pytest.fixture
def splits(monkeypatch):
    """Two images in place of those that a config names; returns the calls that read them."""
    calls = []

    def prepare(config, workdir, resumes):
        size = config.data.image_size
        images = np.zeros((2, size, size, 3), np.uint8)
        labels, none = np.arange(2, dtype=np.int32), ("",) * 2
        one = Dataset(images, labels, ("x", "y"), ("a", "b"), none, none)
        calls.append((size, resumes))
        if not resumes:
            content = {
                "seed": 0,
                "classes": ["a", "b"],
                "sources": {"train": {"spec": "x", "fingerprint": "f"}},
                "parts": {"train": ["x", "y"]},
                "pixels": {"train": fingerprint.to_text(fingerprint.of_images(images))},
            }
            (workdir / "splits.json").write_text(json.dumps(content))
            (workdir / "audit").mkdir()
            (workdir / "audit" / "audit.json").write_text("{}")
        return Splits(one, one, one)

    monkeypatch.setattr(input_pipeline, "prepare_splits", prepare)
    return calls
