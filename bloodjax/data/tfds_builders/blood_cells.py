"""Blood cells (PBC, BloodMNIST, the AN2DL challenge) as a dataset of tensorflow_datasets.

    from bloodjax.data.tfds_builders.blood_cells import BloodCells
    BloodCells(source="training_set.npz").download_and_prepare()

writes the dataset to the data folder of tensorflow_datasets (or `data_dir=...`), where the SPEC
`tfds:blood_cells` finds it. `source` is any SPEC of labelled images; nothing is downloaded.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np

from bloodjax.data import packing
from bloodjax.data.dataset import Dataset
from bloodjax.data.formats import npz
from bloodjax.data.formats.tfds import features, split_name, tfds
from bloodjax.errors import UserError

_DESCRIPTION = """
Images of single blood cells, with the eight labels of BloodMNIST or with those of the source.
Acevedo et al., Data in Brief 30, 2020.
"""


class BloodCells(tfds.core.GeneratorBasedBuilder):
    """Features: image (the source's file, or a PNG), label, name and group."""

    name = "blood_cells"
    VERSION = tfds.core.Version("1.0.0")
    # Folder of the checksums of downloads, of which there are none. Without a value the library
    # would import importlib_resources, which it does not install.
    code_path = None

    def __init__(self, *, source: str | None = None, **options: Any):
        """Creates a builder.

        Args:
          source: A SPEC to build the dataset from; None to load a dataset that is already built.
          **options: Arguments of `tfds.core.DatasetBuilder`.

        Raises:
          UserError: The source cannot be read.
        """
        self._dataset = None if source is None else packing.load_source(source)
        super().__init__(**{"file_format": "array_record", **options})

    def _info(self) -> tfds.core.DatasetInfo:
        classes = npz.BLOOD_CELLS if self._dataset is None else self._dataset.classes
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=features(classes, None),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.1016/j.dib.2020.105474",
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        if self._dataset is None:
            raise UserError("BloodCells has no source, expected BloodCells(source=SPEC)")
        splits = np.array([split_name(split) for split in self._dataset.splits])
        return {
            str(split): self._generate_examples(self._dataset.take(splits == split))
            for split in np.unique(splits)
        }

    def _generate_examples(self, dataset: Dataset) -> Iterator[tuple[str, dict[str, Any]]]:
        encoded = packing.encode(dataset, as_pixels=False)
        columns = zip(dataset.names, dataset.labels.tolist(), dataset.groups, encoded, strict=True)
        for name, label, group, image in columns:
            file = io.BytesIO(image)  # encoding an array would need TensorFlow
            yield name, {"image": file, "label": label, "name": name, "group": group}
