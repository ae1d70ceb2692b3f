"""What an evaluation says and writes about groups of images, such as patients or slides."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from bloodjax.cli.console import counted
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import tables
from bloodjax.metrics.group_predictions import GroupPredictions, index_groups
from bloodjax.report import groups as sentences

FILE = "group_predictions.csv"


def write(
    out: pathlib.Path, dataset: Dataset, probabilities: Float[np.ndarray, "n classes"]
) -> None:
    """Writes the table of groups to the folder `out`, if the images have groups.

    Args:
      out: The folder. A table of an earlier evaluation of images with groups is removed from it.
      dataset: The labelled images.
      probabilities: Their class probabilities.
    """
    columns = table(dataset, dataset.classes, probabilities)
    if columns is None:
        (out / FILE).unlink(missing_ok=True)
    else:
        tables.write(out / FILE, columns)


def table(
    dataset: Dataset,
    classes: Sequence[str],
    probabilities: Float[np.ndarray, "n classes"],
    labelled: bool = True,
) -> tables.Columns | None:
    """The table of groups (`tables.by_group`); None if no image has a group.

    Args:
      dataset: The images.
      classes: Class names in the order of the probabilities.
      probabilities: Their class probabilities.
      labelled: Whether the labels of the images are known.
    """
    names, group_of = index_groups(dataset.groups)
    if not names:
        return None
    known = group_of >= 0
    predictions = GroupPredictions(probabilities[known], dataset.labels[known], group_of[known])
    return tables.by_group(names, classes, predictions, labelled)


def lines(result: Mapping) -> list[str]:
    """What to log on groups, given the content of `metrics.json`; nothing without groups.

    The interval that resamples groups is left out if it is that of the images.
    """
    found = result.get("groups")
    if found is None:
        return []
    said = list(filter(None, [sentences.trained_on_remark(found)]))
    if not sentences.is_grouped(found):
        return said
    said.append(_spread(found))
    few = sentences.few_remark(found)
    if few or sentences.differs(result["ci95"]["accuracy"], found["ci95"]["accuracy"]):
        said.append("; ".join(filter(None, (_interval(found), few))))
    if found["together"]["n"] > 1:
        said.append(_together(found["together"]))
    return said


def _spread(found: Mapping) -> str:
    spread, worst = found["accuracy"], found["worst"]
    if found["n"] == 1:
        return f"all {counted(found['images'], 'image')} with a group are of {worst['group']}"
    return (
        f"accuracy in {counted(found['n'], 'group')} from {spread['min']:.4f} ({worst['group']}, "
        f"{counted(worst['n'], 'image')}) to {spread['max']:.4f}, median {spread['median']:.4f}"
    )


def _interval(found: Mapping) -> str:
    limits = found["ci95"]["accuracy"]
    if limits is None:
        return ""
    return (
        f"95 % interval of the accuracy {limits[0]:.4f} to {limits[1]:.4f} if groups are resampled"
    )


def _together(found: Mapping) -> str:
    shown = []
    for name, text in (("majority", "majority"), ("mean_probability", "mean probability")):
        low, high = found[name]["ci95"]["accuracy"]
        shown.append(f"{text} {found[name]['accuracy']:.4f} ({low:.4f} to {high:.4f})")
    tied = f"; {found['tied']} without a most frequent label" if found["tied"] else ""
    return f"accuracy of {counted(found['n'], 'whole group')}: {', '.join(shown)}{tied}"
