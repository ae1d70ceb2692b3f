"""The images of a sweep: read and split once, and linked into the workdir of each trial."""

from __future__ import annotations

import pathlib
import shutil

from bloodjax import config as config_lib
from bloodjax.cli import console
from bloodjax.config import Config
from bloodjax.data import fingerprint, statement
from bloodjax.data import splits as splits_lib
from bloodjax.io.files import atomic_write, link
from bloodjax.training import input_pipeline
from bloodjax.training.input_pipeline import Splits
from bloodjax.training.saved_splits import SPLITS_FILE
from bloodjax.training.workdir import CONFIG_FILE


class TrialData:
    """Reads the images of a sweep's trials. Those that were read last stay in memory."""

    def __init__(self, config: Config, workdir: pathlib.Path) -> None:
        """Reads nothing yet.

        Args:
          config: Config of the sweep.
          workdir: Folder of the sweep, which keeps the splits and the audit.
        """
        self._config, self._workdir = config, workdir
        self._last: tuple[tuple, Splits] | None = None

    def read(self, config: Config, resumes: bool = True) -> Splits:
        """The images in the size of `config`.

        Args:
          config: Config of the sweep or of a trial.
          resumes: Whether splits that the folder has are taken. Otherwise they are drawn.

        Raises:
          UserError: The images cannot be read.
        """
        key = _reads_as(config)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        self._last = None  # frees the memory
        splits = input_pipeline.prepare_splits(config, self._workdir, resumes=resumes)
        for line in statement.lines(dict(splits.items()), splits.left_out):
            console.log_info(line)
        self._last = key, splits
        return splits

    def prepare(self, config: Config, folder: pathlib.Path) -> Splits:
        """The images of a trial, whose workdir gets the config, and the sweep's splits and audit.

        Args:
          config: Config of the trial.
          folder: Workdir of the trial, which exists.

        Raises:
          UserError: The images cannot be read.
        """
        splits = self.read(config)
        if not (folder / CONFIG_FILE).exists():
            _link(self._workdir / "audit", folder / "audit")
            if _reads_as(config) == _reads_as(self._config):
                _link(self._workdir / SPLITS_FILE, folder / SPLITS_FILE)
            else:
                _write_splits(self._workdir / SPLITS_FILE, folder / SPLITS_FILE, splits)
            # Last, because a run with a config resumes from its splits.
            atomic_write(folder / CONFIG_FILE, config_lib.to_json(config))
        return splits


def _reads_as(config: Config) -> tuple[int, str]:
    """What images look like depends on this."""
    return config.data.image_size, config.data.fit


def _write_splits(source: pathlib.Path, target: pathlib.Path, splits: Splits) -> None:
    """Writes the sweep's splits with the hashes of the images as a trial reads them."""
    content = splits_lib.load(source)
    images = {name: dataset.images for name, dataset in splits.items()}
    content["pixels"] = {
        name: fingerprint.to_text(fingerprint.of_images(images[name]))
        for name in content["pixels"]
        if name in images
    }
    splits_lib.write(target, content)


def _link(source: pathlib.Path, target: pathlib.Path) -> None:
    """A copy of a file or folder that takes no space where the file system has links."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)
    else:
        link(source, target)
