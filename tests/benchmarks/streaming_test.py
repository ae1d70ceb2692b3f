import json
import sys

import numpy as np
import pytest

from benchmarks import streaming
from bloodjax.data.lazy import LazyImages
from bloodjax.models.head import Head, Network
from bloodjax.models.simple_cnn import SimpleCNN
from bloodjax.training import factory


def test_no_two_cells_are_equal():
    dataset = streaming.cells(1300, side=32)
    assert isinstance(dataset.images, LazyImages)
    assert len(np.unique(dataset.images[:].reshape(1300, -1), axis=0)) == 1300
    np.testing.assert_array_equal(dataset.labels[400:800], dataset.labels[:400])
    np.testing.assert_array_equal(
        dataset.images[825], np.roll(dataset.images[25], (0, 2), axis=(0, 1))
    )
    with pytest.raises(ValueError, match="expected at most 384400"):
        streaming.cells(384_401, side=32)


@pytest.mark.slow
def test_the_memory_and_the_rates_are_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(streaming, "_ROUNDS", 2)
    monkeypatch.setattr(streaming, "_SIDE", 32)
    small = SimpleCNN(depths=(1,), widths=(8,))
    monkeypatch.setattr(
        factory, "network", lambda _, classes, axis=None: Network(small, Head(classes))
    )
    spec = streaming._pack(streaming.cells(420, 32), tmp_path / "set")
    found = streaming.memory(spec, "simple_cnn", 16, 2, "never")
    assert list(found) == ["audit and splits", "training", "validation", "baseline"]
    assert all(2**26 < size < 2**36 for size in found.values())
    monkeypatch.setattr(
        sys,
        "argv",
        ["streaming", "--worker=rate", f"--dir={spec}", "--network=simple_cnn", "--seconds=0"],
    )
    streaming.main()
    rates = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert rates["steps"] == 2
    assert [len(times) for times in rates["seconds_a_step"].values()] == [2, 2]
    low, high = rates["lowest_and_highest"]
    assert low <= rates["rate_streamed_to_resident"] <= high
