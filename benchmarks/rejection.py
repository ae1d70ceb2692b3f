"""Measures what a trained run's detector of unlike images rejects, beside the other methods.

python -m benchmarks.rejection --workdir=DIR --test=SPEC [--distortions=NAMES] [--other=SPEC]
                               [--junk=PATH]

Each method is fitted to the run's training images, with the threshold that rejects 1 % of its
validation images. The table has the share that it rejects of images of each held-out kind, of the
test images, of the same images under one distortion each, of the answers that are wrong on images
of another laboratory, and of images that are no cells. No view but the image itself is used.

The last lines have what the run as a whole does, with its own views, detector and threshold of
confidence: under the distortions its accuracy, the share that it refers, and the error on the rest;
in the other laboratory how many of its wrong answers it refers. The workdir is only read.
"""

from __future__ import annotations

import argparse
import pathlib

import numpy as np
from jaxtyping import Bool

from bloodjax import config as config_lib
from bloodjax.configs.recipes import robust
from bloodjax.corruptions import registry, unfamiliar
from bloodjax.data import sources
from bloodjax.data.dataset import Dataset
from bloodjax.evaluation import classifier, rejection
from bloodjax.evaluation.classifier import Classifier
from bloodjax.metrics import novelty
from bloodjax.metrics.novelty import Description
from bloodjax.training import corrupted_splits, saved_splits
from bloodjax.training.workdir import CONFIG_FILE

_PER_KIND = 200  # validation images that each held-out kind is made of


def detectors(
    model: Classifier, train: Dataset, validation: Dataset
) -> dict[str, rejection.Detector]:
    """Method -> detector of a run, fitted as at the end of the run."""
    _, known, seen = rejection.describe_splits(model, train, validation)
    rate = model.config.evaluation.rejection_rate
    return {
        method: rejection.fit(known, seen, {}, model.classes, method, rate)
        for method in novelty.METHODS
    }


def rejected(detector: rejection.Detector, images: Description) -> Bool[np.ndarray, " n"]:
    """Whether a detector rejects images."""
    return detector.score(images) > detector.threshold


def wrong(dataset: Dataset, images: Description) -> Bool[np.ndarray, " n"]:
    """Whether the network's own answers to unmodified images are wrong."""
    return images.logits.argmax(axis=1) != dataset.labels


def referred(is_wrong: Bool[np.ndarray, " n"], refers: Bool[np.ndarray, " n"]) -> str:
    """How many of the wrong answers are referred."""
    return (
        f"{is_wrong.sum():,} of {len(is_wrong):,} answers are wrong, of which "
        f"{(is_wrong & refers).sum():,} are referred"
    )


def line(name: str, shares: dict[str, Bool[np.ndarray, " n"]]) -> str:
    """A row of the table: the share and the number that each method rejects."""
    cells = [f"{found.mean():.1%} ({found.sum():,} of {len(found):,})" for found in shares.values()]
    return " | ".join([name, *cells])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", required=True, type=pathlib.Path)
    parser.add_argument("--test", required=True)
    parser.add_argument("--distortions", default=robust.get_config().data.validation_distortion)
    parser.add_argument("--other")
    parser.add_argument("--junk")
    args = parser.parse_args()
    model, file = classifier.load(args.workdir), args.workdir / saved_splits.SPLITS_FILE
    config = config_lib.load_json(args.workdir / CONFIG_FILE)
    train, validation = (
        saved_splits.recall(config, file, model.classes, name) for name in ("train", "validation")
    )
    fitted = detectors(model, train, validation)

    def show(name: str, described: Description, among: np.ndarray | slice = slice(None)) -> None:
        shares = {m: rejected(detector, described)[among] for m, detector in fitted.items()}
        print(line(name, shares), flush=True)

    print(" | ".join(["rejected", *fitted]))
    index = np.random.default_rng(0).permutation(len(validation))[:_PER_KIND]
    cells = np.asarray(validation.take(np.sort(index)).images)
    for kind in unfamiliar.KINDS:
        show(kind, model.describe_fully(unfamiliar.make(kind, cells, 1)))
    _, test = saved_splits.select(config, file, model.classes, args.test, None)
    show("test images", model.describe_fully(test.images))
    choice = registry.parse(args.distortions, "--distortions")
    distorted = corrupted_splits.distorted(test, choice, config.seed)
    show("distorted test images", model.describe_fully(distorted))
    if args.other:
        _, other = saved_splits.select(config, file, model.classes, args.other, None)
        described = model.describe_fully(other.images)
        show("another laboratory", described)
        show("another laboratory, wrong answers", described, wrong(other, described))
        answers = model.answer(other.images)
        others = "the run in the other laboratory: " + referred(
            answers.predicted != other.labels, answers.refer
        )
    if args.junk:
        options = config_lib.read_options(config)
        junk = sources.load_images(args.junk, config.data.image_size, options=options)
        show("junk", model.describe_fully(junk.images))
    if args.other:
        print(others)
    answers = model.answer(distorted)
    right, kept = answers.predicted == test.labels, ~answers.refer
    print(
        f"under distortion: accuracy {right.mean():.4f}, refers {answers.refer.mean():.1%}, error "
        f"on the rest {(~right[kept]).mean():.2%} of {kept.sum():,}"
    )


if __name__ == "__main__":
    main()
