"""Tests of bloodjax/pretrained/bloodjax_file.py."""

import json

import numpy as np
import pytest

from bloodjax import models
from bloodjax.errors import UserError
from bloodjax.pretrained import bloodjax_file, readers
from bloodjax.pretrained.merge import flatten
from bloodjax.pretrained.pretrained_cfg import PretrainedCfg

RESNET50 = models.architecture("resnet50")
CFG = PretrainedCfg(
    "hf:timm/x@abc",
    "timm",
    "tf",
    (0.1, 0.2, 0.3),
    (0.4, 0.5, 0.6),
    size=288,
    interpolation="bilinear",
    licence="mit",
    citation="Ünal et al., 2020",
)


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "weights.safetensors"
    rng = np.random.default_rng(0)
    variables = {
        "params": {"head": {"bias": rng.normal(size=3).astype(np.float32)}},
        "batch_stats": {"backbone": {"norm": {"mean": rng.normal(size=(2, 2))}}},
    }
    bloodjax_file.write(path, "resnet50", 3, CFG, variables)
    return path, variables


def test_what_is_written_comes_back(written):
    path, variables = written
    tensors = readers.read_tensors(path)
    assert set(tensors.arrays) == {"params/head/bias", "batch_stats/backbone/norm/mean"}
    for key, value in flatten(variables).items():
        np.testing.assert_array_equal(tensors.arrays[key], value)
    assert (tensors.metadata["num_classes"], tensors.metadata["source"]) == ("3", "hf:timm/x@abc")
    found = bloodjax_file.parse_metadata("here", RESNET50, tensors.metadata)
    assert (found.location, found.naming) == ("here", "bloodjax")
    for field in ("variant", "mean", "std", "size", "interpolation", "licence", "citation"):
        assert getattr(found, field) == getattr(CFG, field), field


def test_a_foreign_file_has_no_pretrained_cfg():
    assert bloodjax_file.parse_metadata("here", RESNET50, {"format": "pt"}) is None
    assert bloodjax_file.parse_metadata("here", RESNET50, {}) is None


def test_another_network_is_refused_by_name(written):
    with pytest.raises(UserError, match="here: contains weights of resnet50, expected resnet18"):
        bloodjax_file.parse_metadata(
            "here", models.architecture("resnet18"), readers.read_tensors(written[0]).metadata
        )


@pytest.mark.parametrize(
    ("key", "value"), [("mean", "[1,"), ("std", json.dumps(["a"])), ("size", None)]
)
def test_damaged_metadata_are_refused(written, key, value):
    metadata = readers.read_tensors(written[0]).metadata | {key: value}
    with pytest.raises(UserError, match=r"here: damaged metadata .* that bloodjax.convert writes"):
        bloodjax_file.parse_metadata(
            "here", RESNET50, {k: v for k, v in metadata.items() if v is not None}
        )


def test_older_files_are_read(written):
    metadata = readers.read_tensors(written[0]).metadata
    assert metadata["model"] == "resnet50"
    old = {key: text for key, text in metadata.items() if key != "variant"}
    old |= {"model": "resnet_50", "flavour": metadata["variant"]}
    found = bloodjax_file.parse_metadata("here", RESNET50, old)
    assert found == bloodjax_file.parse_metadata("here", RESNET50, metadata)
    del old["flavour"]
    with pytest.raises(UserError, match="here: damaged metadata"):
        bloodjax_file.parse_metadata("here", RESNET50, old)


def test_a_network_that_does_not_exist_is_another_network(written):
    metadata = readers.read_tensors(written[0]).metadata | {"model": "resnet_51"}
    with pytest.raises(UserError, match="here: contains weights of resnet_51, expected resnet50"):
        bloodjax_file.parse_metadata("here", RESNET50, metadata)
