"""Datasets of the library `datasets` of Hugging Face."""

import pytest

datasets = pytest.importorskip("datasets", reason="needs the extra hf-datasets")

N = 12
CLASSES = ["basophil", "eosinophil", "monocyte"]


def rows(pictures, start=0, stop=N, **more):
    """A split; `more` are further columns: values and feature."""
    index = range(start, stop)
    columns = {
        "image": [{"bytes": pictures[i], "path": f"cell_{i}.png"} for i in index],
        "label": [i % 3 for i in index],
        **{name: values for name, (values, _) in more.items()},
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)}
    features |= {name: feature for name, (_, feature) in more.items()}
    return datasets.Dataset.from_dict(columns, datasets.Features(features))
