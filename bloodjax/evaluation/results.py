"""Which source results are of, and the folder that they are written to."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from bloodjax.errors import UserError
from bloodjax.io import bucket_urls

METRICS_FILE = "metrics.json"


def of_run(part: str, spec: str, site_classes: Sequence[str] = ()) -> dict[str, object]:
    """The source of results on a split of the run itself.

    Args:
      part: Name of the split, such as "test".
      spec: SPEC that the images were read from.
      site_classes: The classes that can occur, if not all of the run's can.
    """
    return _source(True, part, spec, site_classes)


def of_data(part: str, spec: str, site_classes: Sequence[str] = ()) -> dict[str, object]:
    """The source of results on other images than the run's own.

    Args:
      part: Name of the part of the source, or of the source.
      spec: SPEC that the images were read from.
      site_classes: The classes that can occur, if not all of the run's can.
    """
    return _source(False, part, spec, site_classes)


def by_runs(source: Mapping[str, object], workdirs: Sequence[pathlib.Path]) -> dict[str, object]:
    """`source` with the runs that the results are of.

    Results in a run's own folder need not name it. Those of an ensemble, and those elsewhere, do.
    """
    return {**source, "runs": [str(workdir.resolve()) for workdir in workdirs]}


def folder(
    out: pathlib.Path | None, parent: pathlib.Path, name: str, source: Mapping[str, object]
) -> pathlib.Path:
    """The folder for results, which has no results of another source or of other runs in it.

    Args:
      out: Folder that the user asked for, or None.
      parent: Folder of the run's results, used if `out` is None.
      name: Name of the results. The folder is `parent/name`, or `parent/name-2` and so on where
        that has other results.
      source: Source of the results, from `of_run` or `of_data`, and `by_runs`.

    Raises:
      UserError: `out` is not a folder, or contains results of another source or of other runs.
    """
    if out is None:
        numbered = (f"{name}-{n}" if n > 1 else name for n in itertools.count(1))
        return next(parent / each for each in numbered if _is_free(parent / each, source))
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"--out={out}: is not a folder, expected a folder")
    if not _is_free(out, source):
        raise UserError(
            f"--out={out}: contains the results of other images or of other runs; expected a new "
            "folder, or the one of an earlier evaluation of the same runs and source"
        )
    return out


def remove_parts(out: pathlib.Path, *names: str) -> None:
    """Removes files that an earlier evaluation wrote to `out`, and folders that are empty then."""
    for name in names:
        path = out / name
        path.unlink(missing_ok=True)
        if path.parent != out:
            with contextlib.suppress(OSError):  # it is not there, or has files of the user's
                path.parent.rmdir()


def _is_free(path: pathlib.Path, source: Mapping[str, object]) -> bool:
    """Whether `path` has no results, or results of the same source and runs."""
    if not path.is_dir():
        return not os.path.lexists(path)
    file = path / METRICS_FILE
    if not file.exists():
        return True
    try:
        found = json.loads(file.read_text("utf-8")).get("source")
    except (AttributeError, OSError, RecursionError, ValueError):
        return False
    if found is None:  # written before results named their source
        return bool(source["own"]) and path.name == source["part"] and "site_classes" not in source
    # The run's own images are the same at any path.
    # Results in a run's own folder, and those of earlier versions, do not name the runs.
    if "runs" in found and "runs" in source and found["runs"] != source["runs"]:
        return False
    keys = ("own", "part", "site_classes") + (() if source["own"] else ("spec",))
    return all(found.get(key) == source.get(key) for key in keys)


def _source(own: bool, part: str, spec: str, site_classes: Sequence[str]) -> dict[str, object]:
    source = {"own": own, "part": part, "spec": _absolute(spec)}
    return source | ({"site_classes": list(site_classes)} if site_classes else {})


def _absolute(spec: str) -> str:
    is_path = bucket_urls.is_remote(spec) or os.path.exists(os.path.expanduser(spec))
    return bucket_urls.absolute(spec) if is_path else spec
