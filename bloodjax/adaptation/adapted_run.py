"""The workdir of an adapted run: evaluated, exported and served like that of a trained one.

`config.json`, `splits.json`, `audit/`, `metrics.jsonl`, `baseline.json`, `tta.json` and `report/`
are those of the run that was adapted, whose training they describe. Its one checkpoint has the
adapted weights. `site.json` and `adaptation.json` say what was adapted, and `splits.json` has the
hashes of the labelled images that were used, so that `evaluate` tells them apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import PyTree

from bloodjax.config import PHASES
from bloodjax.data import fingerprint
from bloodjax.data import splits as splits_lib
from bloodjax.data.dataset import Dataset
from bloodjax.errors import Stopped, UserError
from bloodjax.evaluation import (
    calibration,
    classifier,
    ensemble,
    model_folder,
    referral,
    rejection,
    tta_selection,
)
from bloodjax.evaluation.site import Site
from bloodjax.io import files
from bloodjax.training import factory
from bloodjax.training.saved_splits import SPLITS_FILE
from bloodjax.training.workdir import (
    ADAPTATION_FILE,
    BASELINE_FILE,
    CHECKPOINTS,
    CONFIG_FILE,
    LOCK_FILE,
    lock_workdir,
    open_run,
    write_variables,
)

# Below the temporary folder: results that a killed command need not compute again.
PROGRESS = "progress"
# Files and folders that describe the run and its training, whatever its weights are now.
_KEPT = (
    CONFIG_FILE,
    "audit",
    "metrics.jsonl",
    "report",
    BASELINE_FILE,
    tta_selection.FILE,
)
# Files that were fitted to what the network answers with the run's own weights.
_FITTED = (calibration.FILE, referral.FILE, rejection.FILE, rejection.ARRAYS_FILE)


def check(out: pathlib.Path, source: pathlib.Path) -> None:
    """Checks, before anything is computed, that `source` can be adapted and `out` be written.

    Raises:
      UserError: `source` is an exported model, or has folds; or `out` exists or cannot be made.
    """
    if model_folder.is_model_folder(source):
        raise UserError(
            f"--workdir={source}: is an exported model, which has no training images to compare "
            "with; expected the folder of a run"
        )
    folds = ensemble.fold_folders(source)
    if folds != [source]:
        raise UserError(f"--workdir={source}: has folds, expected one run, such as {folds[0]}")
    if os.path.lexists(out):
        raise UserError(f"--out={out}: exists already, expected a new folder")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: there is no folder {out.parent}")
    files.make_folder(out.parent)


@contextlib.contextmanager
def create(out: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `out`, which becomes `out` when the block ends.

    If the process is killed, the folder stays. The next call finds it, removes everything in it
    but `PROGRESS`, and continues from that. An exception removes the folder, unless it is a signal.

    Args:
      out: The new folder; `check` has accepted it.

    Yields:
      The temporary folder, empty except for `PROGRESS`. No other process can have it.

    Raises:
      UserError: Another process makes `out`, or the folder cannot be written.
    """
    folder = out.with_name(f".{out.name}.adapting")
    with lock_workdir(folder):
        try:
            for path in folder.iterdir():
                if path.name not in (LOCK_FILE, PROGRESS):
                    files.remove(path)
            yield folder
            files.remove(folder / PROGRESS)
            folder.rename(out)
        except Stopped:
            raise
        except OSError as error:
            files.remove(folder)
            why = files.reason(error)
            raise UserError(f"--out={out}: {why}, expected a folder to write") from error
        except Exception:
            files.remove(folder)
            raise


def fill(
    folder: pathlib.Path,
    source: pathlib.Path,
    *,
    variables: PyTree | None,
    site: Site | None,
    about: Mapping[str, object],
    labelled: Dataset | None = None,
) -> None:
    """Writes an adapted run to a folder from `create`.

    With new variables, no calibration, referral and detector are written: those of the run were
    fitted to its old weights. `uncertainty.fit_run` fits new ones.

    Args:
      folder: The folder.
      source: Folder of the run that is adapted.
      variables: The network's new variables; None for those of the run.
      site: What is known about the site; None for nothing.
      about: JSON values, the content of `adaptation.json`.
      labelled: Images of the site whose labels were used, as the network's own reader gives them.

    Raises:
      UserError: `source` has no run, or the run has no valid checkpoint.
    """
    with open_run(source) as run:
        model = classifier.from_run(run)
        progress = dataclasses.replace(
            run.progress,
            phase=len(PHASES),
            best_step=run.best_step,
            top_k=(),
            trained=False,
        )
        write_variables(
            folder / CHECKPOINTS,
            progress,
            model.predictor.variables if variables is None else variables,
            factory.executor(run.config, len(model.classes)),
            ema=run.config.ema > 0,
        )
    for name in (*_KEPT, *(_FITTED if variables is None else ())):
        path = source / name
        if path.is_dir():
            shutil.copytree(path, folder / name, ignore_dangling_symlinks=True)
        elif path.is_file():
            shutil.copyfile(path, folder / name)
    _write_splits(folder, source, labelled)
    if site is not None:
        site.write(folder)
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    files.atomic_write(folder / ADAPTATION_FILE, text)


def _write_splits(folder: pathlib.Path, source: pathlib.Path, labelled: Dataset | None) -> None:
    """Writes the run's `splits.json`, with the hashes of the labelled images added to it."""
    saved = splits_lib.load(source / SPLITS_FILE)
    if labelled is not None:
        known = fingerprint.from_text(saved.get(splits_lib.ADAPTED_TO, ""))
        new = fingerprint.of_images(labelled.images)
        saved[splits_lib.ADAPTED_TO] = fingerprint.to_text(np.union1d(known, new))
        groups = fingerprint.from_text(saved["groups"].get(splits_lib.ADAPTED_TO, ""))
        both = np.union1d(groups, fingerprint.from_text(splits_lib.hash_groups(labelled.groups)))
        saved["groups"][splits_lib.ADAPTED_TO] = fingerprint.to_text(both)
    splits_lib.write(folder / SPLITS_FILE, saved)
