import json

import pytest

from bloodjax.evaluation import model_folder


def test_a_shared_config_has_no_folders(make_config):
    config = make_config(
        **{
            "data.train": "/data/anna/cells.csv",
            "data.test": "hf-dataset:lab/cells@0123abc:full",
            "data.images": "/data/anna/crops",
            "distill.workdir": "/data/anna/a,/data/anna/b",
        }
    )
    shared = model_folder.shared_config(config)
    assert (shared.data.train, shared.data.images) == ("cells.csv", "")
    assert shared.data.test == config.data.test
    assert shared.distill.workdir == "a,b"
    assert "anna" not in json.dumps(shared.to_dict())


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hf-dataset:lab/cells@0123abc:full", None),
        ("tfds:lab/cells:1.0.0", None),
        ("synthetic:100", None),
        (0.2, None),
        ("", None),
        ("runs/cells.zip", "cells.zip"),
        ("gs://lab/cells/", "cells"),
        ("hf-dataset/cells", "cells"),
        ("cells/synthetic", "./synthetic"),
        ("cells/1.10/", "./1.10"),
    ],
)
def test_only_paths_lose_their_folders(value, expected):
    assert model_folder.without_folders(value) == (value if expected is None else expected)
