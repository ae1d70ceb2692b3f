"""Sets in the layout of TensorFlow Datasets, read and described without TensorFlow.

A folder of ArrayRecord shards `<name>-<split>.array_record-00000-of-00001`, whose records are
`tf.train.Example` messages, with `dataset_info.json` and `features.json` beside them. The one
module that imports tensorflow_datasets; nothing in it reaches the network.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from bloodjax.data.formats.records import Shard
from bloodjax.errors import UserError

__all__ = [
    *("INFO", "Layout", "describe", "example", "features", "locate", "parse", "pixels"),
    *("read_layout", "shard_name", "split_name", "tfds"),
]

INFO = "dataset_info.json"
_FORMAT = "array_record"
# In a description, what names a class to import, and what may hold such names as text.
_NAMES_A_CLASS = ("pythonClassName", "python_class_name")
_OWN = "tensorflow_datasets.core.features."
_NESTED = ("content", "jsonFeature", "json_feature")
_NAME = re.compile(r"(\w+(?:/[\w.-]+)?)(?::(\d+\.\d+\.\d+))?")


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a set's records are.

    Attributes:
      splits: the shards of each split.
      classes: class names in label order.
      image: the feature that holds the image, as a file or as pixels.
      label: the feature that holds its class.
      texts: those of the features "name" and "group" that there are.
      side: of the images in pixels, where they are kept as pixels; None where as files.
    """

    splits: dict[str, tuple[Shard, ...]]
    classes: tuple[str, ...]
    image: str
    label: str
    texts: tuple[str, ...]
    side: int | None


def locate(spec: str) -> pathlib.Path:
    """The folder of `tfds:NAME[/CONFIG][:VERSION]` in the local data folder, the newest by default.

    The data folder is that of tensorflow_datasets: TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Raises:
      UserError: the name is malformed, or the set has not been built there.
    """
    found = _NAME.fullmatch(spec.removeprefix("tfds:"))
    if not found or ".." in spec:
        raise UserError(f"{spec}: expected tfds:NAME[:VERSION], as in tfds:blood_cells:1.0.0")
    name, version = found.groups()
    root = pathlib.Path(tfds.core.constants.get_default_data_dir()).expanduser()
    versions = [
        folder.parent.name
        for folder in (root / name).glob(f"*/{INFO}")
        if tfds.core.Version.is_valid(folder.parent.name)
    ]
    if version in versions:
        return root / name / version
    if versions and version is None:
        return root / name / str(max(map(tfds.core.Version, versions)))
    there = (
        f"there are the versions {', '.join(sorted(versions))}" if versions else "it is not there"
    )
    raise UserError(
        f"{spec}: {there} in {root}; nothing is downloaded: build it with tensorflow_datasets and "
        f'file_format="{_FORMAT}", or name its data folder in TFDS_DATA_DIR'
    )


def read_layout(folder: pathlib.Path) -> Layout:
    """What the records of the set in `folder` are.

    Raises:
      UserError: its description is damaged, or it has no images with one label each.
    """
    try:
        _check_no_code(folder)
        info = tfds.builder_from_directory(folder).info
        splits = {
            name: tuple(
                Shard(pathlib.Path(path), length)
                for path, length in zip(split.filepaths, split.shard_lengths, strict=True)
            )
            for name, split in info.splits.items()
        }
        kinds = dict(info.features.items())
        found = info.file_format.value if info.file_format else "no known format"
    except Exception as error:  # whatever its parsers raise on damaged text
        raise UserError(
            f"{folder}: cannot be read as a set of tensorflow_datasets "
            f"({type(error).__name__}: {str(error)[:120]}), expected a whole {INFO} and "
            "features.json"
        ) from error
    if found != _FORMAT:
        raise UserError(f"{folder}: its records are {found}, expected {_FORMAT}")
    image, label = _only(folder, kinds, _is_image), _only(folder, kinds, _is_label)
    feature = kinds[image]
    is_file = isinstance(feature, tfds.features.Image)
    return Layout(
        splits=splits,
        classes=tuple(kinds[label].names),
        image=image,
        label=label,
        texts=tuple(n for n in ("name", "group") if isinstance(kinds.get(n), tfds.features.Text)),
        side=None if is_file else feature.shape[0],
    )


def parse(record: bytes, layout: Layout) -> tuple[bytes, int, dict[str, str]]:
    """The image, as a file or as pixels, the label, and the `texts` of a record.

    Raises:
      ValueError: it is no record of this layout.
    """
    try:
        fields = tf_example_pb2.Example.FromString(record).features.feature
        (image,) = fields[layout.image].bytes_list.value
        (label,) = fields[layout.label].int64_list.value
        texts = {n: fields[n].bytes_list.value[0].decode() for n in layout.texts}
    except Exception as error:  # protobuf's own errors are not of one kind
        raise ValueError(f"it has no {layout.image} and {layout.label} that are whole") from error
    if layout.side is not None and len(image) != layout.side**2 * 3:
        raise ValueError(f"{layout.image} has {len(image)} bytes, expected {layout.side}^2 * 3")
    return image, label, texts


def pixels(image: bytes, layout: Layout) -> np.ndarray:
    """The image that is kept as pixels, uint8 [side, side, 3]."""
    return np.frombuffer(image, np.uint8).reshape(layout.side, layout.side, 3)


def features(classes: Sequence[str], side: int | None) -> tfds.features.FeaturesDict:
    """Our sets' features: image (files, or pixels where `side` says so), label, name and group."""
    kinds = tfds.features
    image = kinds.Image(shape=(None, None, 3))
    if side is not None:
        image = kinds.Tensor(shape=(side, side, 3), dtype=np.uint8, encoding="bytes")
    return kinds.FeaturesDict(
        {
            "image": image,
            "label": kinds.ClassLabel(names=list(classes)),
            "name": kinds.Text(),
            "group": kinds.Text(),
        }
    )


def example(image: bytes, label: int, name: str, group: str) -> bytes:
    """A record of the features that `features` lists; the same ones give the same bytes."""
    message = tf_example_pb2.Example()
    fields = message.features.feature
    fields["image"].bytes_list.value.append(image)
    fields["label"].int64_list.value.append(label)
    fields["name"].bytes_list.value.append(name.encode())
    fields["group"].bytes_list.value.append(group.encode())
    return message.SerializeToString(deterministic=True)


def split_name(split: str) -> str:
    """What a data set's split is called here; a source without splits is all "train"."""
    return {"": "train", "val": "validation"}.get(split, re.sub(r"\W", "_", split))


def shard_name(name: str, split: str, i: int, n: int) -> str:
    """The file name of shard `i` of `n`."""
    return f"{name}-{split}.{_FORMAT}-{i:05d}-of-{n:05d}"


def describe(
    folder: pathlib.Path,
    name: str,
    kinds: tfds.features.FeaturesDict,
    splits: Mapping[str, Sequence[Shard]],
) -> None:
    """Writes what tensorflow_datasets must know of the set `name` in `folder`."""
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in shards],
            num_bytes=sum(shard.path.stat().st_size for shard in shards),
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=folder, dataset_name=name, split=split, filetype_suffix=_FORMAT
            ),
        )
        for split, shards in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=kinds, split_infos=infos, check_data=False
    )


def _check_no_code(folder: pathlib.Path) -> None:
    """Makes sure that a description names no classes but the library's own, which it would import.

    Raises:
      ValueError: it does, or has parts in which it could.
    """
    for file in (INFO, "features.json"):
        left = [json.loads((folder / file).read_text("utf-8"))]
        while left:
            node = left.pop()
            if isinstance(node, list):
                left += node
            elif isinstance(node, dict):
                left += node.values()
                named = [node[key] for key in _NAMES_A_CLASS if key in node]
                foreign = [n for n in named if not str(n).startswith(_OWN)]
                if foreign or any(key in node for key in _NESTED):
                    raise ValueError(f"{file} has features that are not tensorflow_datasets' own")


def _is_image(feature: tfds.features.FeatureConnector) -> bool:
    if isinstance(feature, tfds.features.Image):
        return True
    shape = feature.shape if type(feature) is tfds.features.Tensor else ()
    square = len(shape) == 3 and shape[0] == shape[1] and shape[2] == 3 and shape[0] is not None
    return square and feature.np_dtype == np.uint8


def _is_label(feature: tfds.features.FeatureConnector) -> bool:
    return isinstance(feature, tfds.features.ClassLabel)


def _only(folder: pathlib.Path, kinds: Mapping, test) -> str:
    found = [name for name, feature in kinds.items() if test(feature)]
    if len(found) == 1:
        return found[0]
    what = "image (an Image)" if test is _is_image else "label (a ClassLabel)"
    raise UserError(
        f"{folder}: has the features {', '.join(sorted(kinds))}; expected just one {what} among "
        f"them, found {len(found)}"
    )
