"""What a SPEC names.

FILE.npz        a challenge file or a MedMNIST file, distinguished by the names of their arrays
FOLDER, X.zip   <class>/<image> or <split>/<class>/<image>
FILE.csv        a table of images and labels, also .tsv, .parquet and .xlsx
FOLDER          ArrayRecord shards, as bloodjax.pack writes them
tfds:NAME[:VERSION]   a dataset that tensorflow_datasets has built on this machine
hf-dataset:OWNER/NAME[@REVISION][:CONFIG]   a dataset of the Hugging Face Hub, from its cache or
                else downloaded; also a folder that its library has saved
synthetic[:N]   N rendered images of blood cells, by default 2,400; a file or folder that is called
                so is meant if it is there
gs://, s3://    any of the files and folders above, in a bucket (`io.remote`)
"""

from __future__ import annotations

import dataclasses
import enum
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterable, Sequence

from bloodjax.data import names
from bloodjax.data.formats import array_record, hf_splits, table_cells
from bloodjax.errors import UserError
from bloodjax.io import bucket_urls, remote

DEFAULT_SYNTHETIC = 2400
_SYNTHETIC = "synthetic"
_TFDS = "tfds:"


class Kind(enum.Enum):
    """How a source is read.

    Attributes:
      FOLDER: A folder or a zip of images.
      IMAGE: Any other file.
    """

    SYNTHETIC = enum.auto()
    TABLE = enum.auto()
    HF_DATASET = enum.auto()
    SHARDS = enum.auto()
    NPZ = enum.auto()
    FOLDER = enum.auto()
    IMAGE = enum.auto()


@dataclasses.dataclass(frozen=True)
class Source:
    """The source that a SPEC names.

    Attributes:
      kind: How it is read.
      where: Its local path. It is the SPEC of a dataset of the Hub, and the URL of a table in a
        bucket, because its images are beside it. "" if it has no files.
      count: Number of rendered images, or 0.
    """

    kind: Kind
    where: str = ""
    count: int = 0

    @property
    def path(self) -> pathlib.Path:
        """The file or folder of a kind that is always local, from `SHARDS` on."""
        return pathlib.Path(self.where)


def resolve(spec: str, *, may_be_image: bool = False) -> Source:
    """Finds the source that a SPEC names; what is in a bucket is copied to this machine.

    Args:
      spec: The SPEC.
      may_be_image: Whether it may name a file of another kind, taken for one image.

    Raises:
      UserError: There is no such source, or it is of no known kind.
    """
    if not spec:
        raise UserError("a SPEC is empty, expected one such as training_set.npz or synthetic:200")
    count = synthetic_count(spec)
    if count is not None:
        return Source(Kind.SYNTHETIC, count=count)
    if hf_splits.is_hub(spec):
        return Source(Kind.HF_DATASET, spec)
    if is_table(spec) and bucket_urls.is_remote(spec):
        return Source(Kind.TABLE, spec)
    path = _local_path(spec)
    return Source(_kind(spec, path, may_be_image), str(path))


def is_table(spec: str) -> bool:
    """Whether a SPEC names a table, by its suffix; a folder or a dataset of the Hub is none."""
    if hf_splits.is_hub(spec) or not table_cells.has_suffix(spec):
        return False
    return bucket_urls.is_remote(spec) or not os.path.isdir(os.path.expanduser(spec))


def check_out(out: pathlib.Path, specs: Sequence[str]) -> None:
    """Refuses a folder for results that has images, because what is written there marks it as ours.

    Args:
      out: The folder.
      specs: SPECs of images that are read.

    Raises:
      UserError: `out` is the folder of a SPEC, or is in it and has other files than results.
    """
    real = out.resolve()
    is_ours = any((out / name).is_file() for name in ("audit.json", "metrics.json"))
    for spec in specs:
        folder = pathlib.Path(os.path.expanduser(spec)).resolve()
        if real == folder or (
            real.is_relative_to(folder) and out.is_dir() and any(out.iterdir()) and not is_ours
        ):
            raise UserError(f"--out={out}: is read for images, expected a new folder")


def check_images(specs: Iterable[str], images: str | None) -> None:
    """Raises a UserError for a folder of a table's images (`--images`) if no SPEC is a table."""
    if images and not any(map(is_table, specs)):
        raise UserError(
            f"--images={images}: only a table has its images elsewhere, expected the data to be one"
        )


def is_called_synthetic(spec: str) -> bool:
    """Whether a SPEC is `synthetic[:N]`, which a file or folder may be called as well."""
    return spec.partition(":")[0] == _SYNTHETIC


def synthetic_count(spec: str) -> int | None:
    """N of `synthetic[:N]`; None for any other SPEC, and if a file or folder has this name.

    Raises:
      UserError: N is not a number of at least 1 and of at most nine digits.
    """
    if not is_called_synthetic(spec) or os.path.lexists(spec):
        return None
    _, colon, count = spec.partition(":")
    if not colon:
        return DEFAULT_SYNTHETIC
    if not re.fullmatch("0*[1-9][0-9]{0,8}", count):
        raise UserError(
            f"{spec}: {count[:20]!r} images, expected synthetic:N with N of 1 or more"
            " and at most nine digits"
        )
    return int(count)


def _kind(spec: str, path: pathlib.Path, may_be_image: bool) -> Kind:
    if path.is_dir():
        if hf_splits.is_saved(path):
            return Kind.HF_DATASET
        return Kind.SHARDS if array_record.is_shards(path) else Kind.FOLDER
    if is_table(spec):
        return Kind.TABLE
    suffix = path.suffix.lower()
    if suffix in (".npz", ".zip"):
        return Kind.NPZ if suffix == ".npz" else Kind.FOLDER
    if may_be_image:
        return Kind.IMAGE
    raise UserError(
        f"{spec}: neither npz nor zip, expected FILE.npz, a .zip, a folder or a table "
        f"({', '.join(table_cells.SUFFIXES)})"
    )


def _local_path(spec: str) -> pathlib.Path:
    if spec.startswith(_TFDS):
        from bloodjax.data.formats import tfds  # slow to import, and most runs do not need it

        return tfds.locate(spec)
    # pathlib's expanduser raises without a home.
    path = pathlib.Path(os.path.expanduser(remote.local(spec)))
    try:
        return path if path.exists() else _in_other_form(spec, path)
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{spec}: cannot be read ({error.strerror})") from error


def _in_other_form(spec: str, path: pathlib.Path) -> pathlib.Path:
    """The one file or folder whose name differs from a missing one's in its Unicode form only.

    Raises:
      UserError: There is none; the message names one that differs in case or blanks.
    """
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    composed = unicodedata.normalize("NFC", path.name)
    same = [name for name in beside if unicodedata.normalize("NFC", name) == composed]
    if len(same) == 1:
        return path.with_name(same[0])
    alike = [name for name in beside if names.form(name) == names.form(path.name)]
    hint = f"; there is {path.with_name(alike[0])}" if alike else ""
    raise UserError(f"{spec}: no such file or folder{hint}")
