"""Ablation of the robust recipe: the effect of each part on clean and on distorted images.

python -m benchmarks.ablation --train=SPEC --validation=SPEC --dir=DIR [--epochs=3] [--seeds=0,1]
                              [--distortions=everything] [--out=benchmarks/results]
                              [--config.key=value ...]

Trains `configs/recipes/robust.py` once for each variant and seed, in a separate workdir under
`--dir`, and evaluates it on the test split of train: on the clean images, and with one distortion
per image, the same for all variants. It prints RESULTS.md's table and writes
`OUT/DEVICE/ablation_DATE.json`. The same command resumes after a stop. It is faster on a CPU with
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment (see `bloodjax.cli.huge_pages`).
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

import jax
import numpy as np
from jaxtyping import Float, Int

from benchmarks import record
from bloodjax import config as config_lib
from bloodjax import metrics, run
from bloodjax.cli import compilation_cache, console
from bloodjax.corruptions import registry
from bloodjax.errors import Stopped, UserError
from bloodjax.evaluation import classifier
from bloodjax.metrics import significance
from bloodjax.training import corrupted_splits, saved_splits

_CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "recipes" / "robust.py"
_MIX = "|mixup(0.2, p=0.25)|cutmix(1.0, p=0.25)"
# Variant -> changes of the recipe. Each variant adds to the one before it.
VARIANTS = {
    "none": {"augment": "none", "ema": 0.0},
    "d4": {"augment": "d4", "ema": 0.0},
    "randaugment": {"augment": "d4|randaugment(2, 0.4)", "ema": 0.0},
    "mix": {"augment": f"d4|randaugment(2, 0.4){_MIX}", "ema": 0.99},
    "recipe": {"ema": 0.99},
}
# Row of the table -> (variant, weights as in `classifier.load`, views).
ROWS = {
    "no augmentation": ("none", "epoch", "none"),
    "flips and quarter turns": ("d4", "epoch", "none"),
    "+ RandAugment": ("randaugment", "epoch", "none"),
    "+ MixUp and CutMix": ("mix", "raw", "none"),
    "+ EMA": ("mix", "epoch", "none"),
    "+ test-time views (d4)": ("mix", "epoch", "d4"),
    "the recipe: its own operations in place of RandAugment": ("recipe", "epoch", "d4"),
}
SETS = ("clean", "distorted")


@dataclasses.dataclass(frozen=True)
class Answers:
    """Predictions on one set; those of the seeds are concatenated."""

    probabilities: Float[np.ndarray, "n classes"]
    labels: Int[np.ndarray, " n"]
    seeds: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, seed: int, probabilities: np.ndarray, labels: np.ndarray) -> Answers:
        """The predictions of one seed."""
        return cls(probabilities, np.asarray(labels), np.full(len(labels), seed))

    def joined(self, other: Answers) -> Answers:
        """Concatenates these predictions and those of `other`."""
        fields = [field.name for field in dataclasses.fields(self)]
        return Answers(*(np.concatenate([getattr(a, f) for a in (self, other)]) for f in fields))


def answers(workdir: pathlib.Path, distortions: str) -> dict[tuple[str, str, str], np.ndarray]:
    """Probabilities by (set, weights, views); the key ("labels",) * 3 has the labels."""
    model = classifier.load(workdir, "epoch")
    test = saved_splits.recall(model.config, workdir / "splits.json", model.classes, "test")
    choice = registry.parse(distortions, "--distortions")
    images = {
        "clean": test.images,
        "distorted": corrupted_splits.distorted(test, choice, 0, "test"),
    }
    found = {("labels", "labels", "labels"): test.labels}
    weights = {"epoch": model}
    if model.config.ema:
        weights["raw"] = classifier.load(workdir, "raw")
    for name, of_set in images.items():
        for which, network in weights.items():
            both = network.predict_with_plain(of_set, "d4")
            found |= {(name, which, "d4"): both[:, 0], (name, which, "none"): both[:, 1]}
    return found


def row(found: dict[str, Answers], before: dict[str, Answers] | None) -> dict[str, object]:
    """Accuracy on each set, with 95 % intervals and the gain over the row above.

    Intervals are from bootstrap resamples of the images of all seeds. They do not include the
    variance between seeds, which the accuracy of each seed indicates.

    Args:
      found: Set -> predictions.
      before: The same for the row above, or None.
    """
    scores = {}
    for name, all_seeds in found.items():
        classes = [str(i) for i in range(all_seeds.probabilities.shape[1])]
        scored = metrics.evaluate(all_seeds.probabilities, all_seeds.labels, classes)
        correct = all_seeds.probabilities.argmax(axis=1) == all_seeds.labels
        seeds = np.unique(all_seeds.seeds)
        scores[name] = {
            "n": scored["n"],
            "accuracy": scored["accuracy"],
            "ci95": scored["ci95"]["accuracy"],
            "seeds": {str(seed): float(correct[all_seeds.seeds == seed].mean()) for seed in seeds},
        }
        if before:
            gain = significance.compare(
                all_seeds.probabilities, before[name].probabilities, all_seeds.labels
            )
            scores[name]["gain"] = {key: gain[key] for key in ("difference", "ci95")}
    return scores


def table(rows: dict[str, dict]) -> str:
    """Formats the rows as a Markdown table."""
    lines = [
        "| training | clean | distorted | gain over the row above, distorted |",
        "|---|---|---|---|",
    ]
    for name, scores in rows.items():
        cells = [_accuracy(scores[which]) for which in SETS]
        gain = scores["distorted"].get("gain")
        cells.append("" if gain is None else _gain(gain))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracy(scores: dict) -> str:
    low, high = scores["ci95"]
    seeds = ", ".join(f"{value:.3f}" for value in scores["seeds"].values())
    return f"{scores['accuracy']:.3f} ({low:.3f} to {high:.3f}); {seeds}"


def _gain(gain: dict) -> str:
    low, high = gain["ci95"]
    return f"{gain['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def _config(chosen: argparse.Namespace, seed: int, changes: dict, overrides: list[str]):
    """The config of one run; the user's overrides have precedence."""
    values = {
        "data.train": chosen.train,
        "data.validation": chosen.validation,
        "data.validation_distortion": chosen.distortions,
        "phases.finetune.epochs": chosen.epochs,
        # This benchmark evaluates the views itself.
        "evaluation.tta": "none",
        "seed": seed,
        **changes,
    }
    own = [f"{key}={value}" for key, value in values.items()]
    return config_lib.load(str(_CONFIG), [*own, *overrides])


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablation", description=__doc__)
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", default="auto")
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--distortions", default="everything")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    return record.parse_with_overrides(parser)


def measure(
    chosen: argparse.Namespace, overrides: list[str]
) -> dict[str, dict[str, dict[str, object]]]:
    """Trains the runs that are not yet trained, and returns the rows of the table."""
    found: dict[tuple[str, str], Answers] = {}
    for seed in chosen.seeds:
        for variant, changes in VARIANTS.items():
            workdir = chosen.dir / f"{variant}-{seed}"
            console.log_info(f"{variant}, seed {seed}: {workdir}")
            compilation_cache.keep(workdir)
            run.train(_config(chosen, seed, changes, overrides), workdir)
            predicted = answers(workdir, chosen.distortions)
            labels = predicted.pop(("labels", "labels", "labels"))
            for name, (whose, which, views) in ROWS.items():
                for part in SETS if whose == variant else ():
                    new = Answers.of(seed, predicted[part, which, views], labels)
                    old = found.get((name, part))
                    found[name, part] = new if old is None else old.joined(new)
    rows, before = {}, None
    for name in ROWS:
        of_row = {part: found[name, part] for part in SETS}
        rows[name] = row(of_row, before)
        before = of_row
    return rows


def main() -> None:
    """Runs the command."""
    chosen, overrides = _arguments()
    console.show_lines()
    try:
        rows = measure(chosen, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as error:
        print(error, file=sys.stderr)
        sys.exit(128 + error.signal)
    device = record.device_name(jax.default_backend(), jax.devices()[0].device_kind)
    about = {"epochs": chosen.epochs, "seeds": chosen.seeds, "distortions": chosen.distortions}
    path = record.write(
        chosen.out, device, {**about, "overrides": overrides, "rows": rows}, prefix="ablation_"
    )
    print(f"{table(rows)}\n\nwritten to {path}")


if __name__ == "__main__":
    main()
