"""Blood cells (PBC, BloodMNIST, the AN2DL challenge) as a set of tensorflow_datasets.

    from bloodjax.data.tfds_builders.blood_cells import BloodCells
    BloodCells(source="training_set.npz").download_and_prepare()

puts them into the data folder of tensorflow_datasets (or `data_dir=...`), where the SPEC
`tfds:blood_cells` finds them. Nothing is downloaded, and any SPEC of labelled images will do.
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
Images of single blood cells, each under one of the eight labels of BloodMNIST or under those that
the source names. Acevedo et al., Data in Brief 30, 2020.
"""


class BloodCells(tfds.core.GeneratorBasedBuilder):
    """Features: image (a file as in the source, else a PNG), label, name and group."""

    name = "blood_cells"
    VERSION = tfds.core.Version("1.0.0")
    # Where checksums of downloads would lie; to find out, the library needs a package that it does
    # not ask for (importlib_resources).
    code_path = None

    def __init__(self, *, source: str | None = None, **options: Any):
        """A builder that reads `source`, a SPEC; without it, one of a set that is built already.

        Raises:
          UserError: the source cannot be read.
        """
        self._dataset = None if source is None else packing.read(source)
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
        encoded = packing.encoded(dataset, as_pixels=False)
        columns = zip(dataset.names, dataset.labels.tolist(), dataset.groups, encoded, strict=True)
        for name, label, group, image in columns:
            picture = io.BytesIO(image)  # an array would ask for TensorFlow
            yield name, {"image": picture, "label": label, "name": name, "group": group}
