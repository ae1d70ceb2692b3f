"""Metadata and records of datasets in tensorflow_datasets' format, without TensorFlow.

Such a dataset is a folder with `dataset_info.json`, `features.json` and ArrayRecord shards
`<name>-<split>.array_record-00000-of-00001`, whose records are `tf.train.Example` messages. The
only module that imports tensorflow_datasets; it never accesses the network.
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
    *("INFO", "Schema", "decode_pixels", "encode_example", "features", "locate"),
    *("parse_example", "read_schema", "shard_name", "split_name", "tfds", "write_metadata"),
]

INFO = "dataset_info.json"
_FORMAT = "array_record"
# JSON keys whose value names a Python class to import, and keys that can contain such JSON as text.
_CLASS_KEYS = ("pythonClassName", "python_class_name")
_OWN_CLASSES = "tensorflow_datasets.core.features."
_NESTED_KEYS = ("content", "jsonFeature", "json_feature")
_NAME = re.compile(r"(\w+(?:/[\w.-]+)?)(?::(\d+\.\d+\.\d+))?")


@dataclasses.dataclass(frozen=True)
class Schema:
    """The shards of a dataset and the features of its records.

    Attributes:
      splits: Split name -> its shards.
      classes: Class names in label order.
      image: Name of the feature that contains the image, as an encoded file or as pixels.
      label: Name of the feature that contains the class index.
      texts: The features among "name" and "group" that the records have.
      size: Height and width of the images if they are stored as pixels; None for files.
    """

    splits: dict[str, tuple[Shard, ...]]
    classes: tuple[str, ...]
    image: str
    label: str
    texts: tuple[str, ...]
    size: int | None


def locate(spec: str) -> pathlib.Path:
    """The folder of the dataset `tfds:NAME[/CONFIG][:VERSION]`, by default of its newest version.

    It is looked up in tensorflow_datasets' data folder: TFDS_DATA_DIR, or ~/tensorflow_datasets.

    Raises:
      UserError: The SPEC is malformed, or the dataset has not been built there.
    """
    match = _NAME.fullmatch(spec.removeprefix("tfds:"))
    if not match or ".." in spec:
        raise UserError(f"{spec}: expected tfds:NAME[:VERSION], as in tfds:blood_cells:1.0.0")
    name, version = match.groups()
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
    found = f"only the versions {', '.join(sorted(versions))} are" if versions else "it is not"
    raise UserError(
        f"{spec}: {found} in {root}, and bloodjax does not download it: build it with "
        f'tensorflow_datasets and file_format="{_FORMAT}", or set TFDS_DATA_DIR to its data folder'
    )


def read_schema(folder: pathlib.Path) -> Schema:
    """Reads the metadata of the dataset in `folder`.

    Raises:
      UserError: The metadata is damaged, or the records do not have one image and one label.
    """
    try:
        _check_own_classes(folder)
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
    except Exception as error:  # its parsers raise any type on damaged text
        raise UserError(
            f"{folder}: cannot be read as a dataset of tensorflow_datasets "
            f"({type(error).__name__}: {str(error)[:120]}), expected a complete {INFO} and "
            "features.json"
        ) from error
    if found != _FORMAT:
        raise UserError(f"{folder}: its records have the format {found}, expected {_FORMAT}")
    image, label = _only(folder, kinds, _is_image), _only(folder, kinds, _is_label)
    feature = kinds[image]
    is_file = isinstance(feature, tfds.features.Image)
    if feature.np_dtype not in (np.uint8, np.uint16):  # others are packed into RGBA files
        raise UserError(
            f"{folder}: {image} has the dtype {feature.np_dtype}, expected uint8 or uint16"
        )
    return Schema(
        splits=splits,
        classes=tuple(kinds[label].names),
        image=image,
        label=label,
        texts=tuple(n for n in ("name", "group") if isinstance(kinds.get(n), tfds.features.Text)),
        size=None if is_file else feature.shape[0],
    )


def parse_example(record: bytes, schema: Schema) -> tuple[bytes, int, dict[str, str]]:
    """Parses a record.

    Returns:
      The image as an encoded file or as pixels, the class index, and the text features.

    Raises:
      ValueError: The record does not match the schema.
    """
    try:
        fields = tf_example_pb2.Example.FromString(record).features.feature
        (image,) = fields[schema.image].bytes_list.value
        (label,) = fields[schema.label].int64_list.value
        texts = {n: fields[n].bytes_list.value[0].decode() for n in schema.texts}
    except Exception as error:  # protobuf's errors have no common type
        raise ValueError(f"{schema.image} or {schema.label} is missing or damaged") from error
    if schema.size is not None and len(image) != schema.size**2 * 3:
        raise ValueError(f"{schema.image} has {len(image)} bytes, expected {schema.size}^2 * 3")
    return image, label, texts


def decode_pixels(image: bytes, schema: Schema) -> np.ndarray:
    """An image that is stored as pixels, as uint8 [size, size, 3]."""
    return np.frombuffer(image, np.uint8).reshape(schema.size, schema.size, 3)


def features(classes: Sequence[str], size: int | None) -> tfds.features.FeaturesDict:
    """The features of records that bloodjax writes: image, label, name and group.

    Args:
      classes: Class names in label order.
      size: Height and width of images that are stored as pixels; None for encoded files.
    """
    kinds = tfds.features
    image = kinds.Image(shape=(None, None, 3))
    if size is not None:
        image = kinds.Tensor(shape=(size, size, 3), dtype=np.uint8, encoding="bytes")
    return kinds.FeaturesDict(
        {
            "image": image,
            "label": kinds.ClassLabel(names=list(classes)),
            "name": kinds.Text(),
            "group": kinds.Text(),
        }
    )


def encode_example(image: bytes, label: int, name: str, group: str) -> bytes:
    """Encodes a record with the features of `features`; equal arguments give equal bytes."""
    message = tf_example_pb2.Example()
    fields = message.features.feature
    fields["image"].bytes_list.value.append(image)
    fields["label"].int64_list.value.append(label)
    fields["name"].bytes_list.value.append(name.encode())
    fields["group"].bytes_list.value.append(group.encode())
    return message.SerializeToString(deterministic=True)


def split_name(split: str) -> str:
    """tensorflow_datasets' name of a split; images without a split belong to "train"."""
    return {"": "train", "val": "validation"}.get(split, re.sub(r"\W", "_", split))


def shard_name(name: str, split: str, i: int, n: int) -> str:
    """The file name of shard `i` of `n`."""
    return f"{name}-{split}.{_FORMAT}-{i:05d}-of-{n:05d}"


def write_metadata(
    folder: pathlib.Path,
    name: str,
    kinds: tfds.features.FeaturesDict,
    splits: Mapping[str, Sequence[Shard]],
) -> None:
    """Writes tensorflow_datasets' metadata of the dataset `name` to `folder`."""
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


def _check_own_classes(folder: pathlib.Path) -> None:
    """Checks that the metadata names no Python class outside tensorflow_datasets.

    tensorflow_datasets imports every class that it names.

    Raises:
      ValueError: It names another class, or contains JSON as text, which could name one.
    """
    for file in (INFO, "features.json"):
        left = [json.loads((folder / file).read_text("utf-8"))]
        while left:
            node = left.pop()
            if isinstance(node, list):
                left += node
            elif isinstance(node, dict):
                left += node.values()
                named = [node[key] for key in _CLASS_KEYS if key in node]
                foreign = [n for n in named if not str(n).startswith(_OWN_CLASSES)]
                if foreign or any(key in node for key in _NESTED_KEYS):
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
        f"{folder}: has the features {', '.join(sorted(kinds))}; expected exactly one {what} among "
        f"them, found {len(found)}"
    )
