"""Ablation of a recipe: the effect of each part at home, distorted, and at other laboratories.

python -m benchmarks.ablation --train=SPEC --validation=SPEC --dir=DIR [--config=recipes/robust]
                              [--leave_out] [--add='NAME=STAGES' ...]
                              [--change='NAME=KEY:VALUE' ...] [--site=NAME=SPEC ...]
                              [--epochs=3] [--seeds=0,1] [--distortions=everything]
                              [--out=benchmarks/results] [--config.key=value ...]

Trains variants of a recipe, each with every seed in a separate workdir under `--dir`, and evaluates
them on the test split of train: on the clean images, and with one distortion per image, the same
for all variants. `--site` adds labelled images of another laboratory, with some of the run's
classes. They are scored with all classes, and with only the laboratory's.

There are two kinds of variants. By default each adds a part to the one before it, from no
augmentation to the recipe. With `--leave_out`, `--add` or `--change` each differs from the whole
recipe, with the overrides `--config.key=value`, in one thing:

  --leave_out   one stage of `config.augment` is left out, each in turn
  --add         STAGES come before those of `config.augment`
  --change      another config key has another value, such as "loss.consistency:12"

It prints RESULTS.md's table and writes `OUT/DEVICE/ablation_DATE.json`, or `one_change_DATE.json`
for the second kind. The same command resumes after a stop. It is faster on a CPU with
`GLIBC_TUNABLES=glibc.malloc.hugetlb=1` in the environment (see `bloodjax.cli.huge_pages`).
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks import ablation_scores, record
from benchmarks.ablation_scores import Answers
from benchmarks.ablation_variants import CUMULATIVE, Ablation, one_change
from bloodjax import config as config_lib
from bloodjax import run
from bloodjax.cli import compilation_cache, console
from bloodjax.config import Config, read_options
from bloodjax.corruptions import registry
from bloodjax.data import sources
from bloodjax.data.options import AUTO
from bloodjax.errors import Stopped, UserError


def named(flag: str, texts: Sequence[str], taken: Sequence[str] = ()) -> dict[str, str]:
    """The values of a repeated flag of the form NAME=TEXT, by name.

    Args:
      flag: The flag, for errors.
      texts: Its values.
      taken: Names that are not allowed.

    Raises:
      UserError: A value has another form, or two have the same name.
    """
    found: dict[str, str] = {}
    for value in texts:
        name, _, text = value.partition("=")
        if not name or not text:
            raise UserError(f"{flag}={value}: expected {flag}=NAME=TEXT")
        if name in found or name in taken or "|" in name:
            raise UserError(f"{flag}={value}: expected another name than {name!r}")
        found[name] = text
    return found


def _changes(texts: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The values of `--change`: name -> config key and its value."""
    found = {}
    for name, text in named("--change", texts).items():
        key, colon, value = text.partition(":")
        if not colon:
            raise UserError(f"--change={name}={text}: expected --change=NAME=KEY:VALUE")
        found[name] = key, value
    return found


def _ablation(chosen: argparse.Namespace, overrides: Sequence[str]) -> Ablation:
    """The variants that the flags ask for."""
    if not (chosen.leave_out or chosen.add or chosen.change):
        return CUMULATIVE
    added, changed = named("--add", chosen.add), _changes(chosen.change)
    recipe = config_lib.load(chosen.config, overrides)
    return one_change(recipe, chosen.leave_out, added, changed)


def _config(
    chosen: argparse.Namespace,
    seed: int,
    changes: Mapping[str, Any],
    overrides: Sequence[str],
    *,
    is_cumulative: bool,
) -> Config:
    """The config of one run.

    The user's overrides have precedence over a cumulative variant. They belong to the whole recipe
    that any other variant changes.
    """
    values = {
        "data.train": chosen.train,
        "data.validation": chosen.validation,
        "data.validation_distortion": chosen.distortions,
        "phases.finetune.epochs": chosen.epochs,
        "seed": seed,
    }
    own, of_variant = ([f"{k}={v}" for k, v in each.items()] for each in (values, changes))
    # This benchmark evaluates the views itself.
    no_views = "evaluation.tta=none"
    if is_cumulative:
        return config_lib.load(chosen.config, [*own, no_views, *of_variant, *overrides])
    return config_lib.load(chosen.config, [*own, *overrides, *of_variant, no_views])


def check_sites(config: Config, sites: Mapping[str, str]) -> None:
    """Reads the images of all sites, before anything is trained.

    Args:
      config: Config of a run.
      sites: Name -> SPEC of labelled images.

    Raises:
      UserError: They cannot be read, or have a class that the training images do not have.
    """
    if not sites:
        return
    size, given = config.data.image_size, config.data.classes
    train = sources.load(
        config.data.train, size, options=read_options(config), class_names=given, lazy=True
    )
    # As `saved_splits.select` reads another source than the run's.
    options = read_options(config_lib.with_reading(config, layout=AUTO))
    for spec in sites.values():
        sources.load(
            spec,
            size,
            options=options,
            class_names=train.classes,
            positional=bool(given),
            lazy=True,
        )


def measure(
    chosen: argparse.Namespace, ablation: Ablation, overrides: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Trains the runs that are not yet trained, and returns the scores of each row by set."""
    registry.parse(chosen.distortions, "--distortions")
    # All configs are loaded first, so that a wrong value costs no training.
    configs = {
        (seed, variant): _config(
            chosen, seed, changes, overrides, is_cumulative=ablation.is_cumulative
        )
        for seed in chosen.seeds
        for variant, changes in ablation.variants.items()
    }
    check_sites(next(iter(configs.values())), chosen.sites)
    found: dict[str, dict[str, Answers]] = {name: {} for name in ablation.rows}
    for (seed, variant), config in configs.items():
        workdir = chosen.dir / f"{variant}-{seed}"
        console.log_info(f"{variant}, seed {seed}: {workdir}")
        compilation_cache.keep(workdir)
        run.train(config, workdir)
        rows = {name: row for name, row in ablation.rows.items() if row.variant == variant}
        predicted = ablation_scores.answers(
            workdir, set(rows.values()), chosen.distortions, chosen.sites
        )
        for name, row in rows.items():
            for part, new in predicted[row].items():
                old = found[name].get(part)
                found[name][part] = new if old is None else old.joined(new)
    scores = {}
    for name, of_row in found.items():
        reference = ablation.reference(name)
        scores[name] = ablation_scores.scores(of_row, reference and found[reference])
    return scores


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ablation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--train", required=True)
    parser.add_argument("--validation", default="auto")
    parser.add_argument("--dir", type=pathlib.Path, required=True)
    parser.add_argument("--config", default="recipes/robust")
    parser.add_argument("--leave_out", action="store_true")
    parser.add_argument("--add", action="append", default=[])
    parser.add_argument("--change", action="append", default=[])
    parser.add_argument("--site", action="append", default=[])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--distortions", default="everything")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    return record.parse_with_overrides(parser)


def main() -> None:
    """Runs the command."""
    chosen, overrides = _arguments()
    console.show_lines()
    try:
        sets = (ablation_scores.CLEAN, ablation_scores.DISTORTED)
        chosen.sites = named("--site", chosen.site, taken=sets)
        ablation = _ablation(chosen, overrides)
        rows = measure(chosen, ablation, overrides)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as error:
        print(error, file=sys.stderr)
        sys.exit(128 + error.signal)
    device = record.device_name(jax.default_backend(), jax.devices()[0].device_kind)
    keys = ("config", "epochs", "seeds", "distortions", "sites")
    content = {
        **{key: getattr(chosen, key) for key in keys},
        "overrides": overrides,
        "variants": ablation.variants,
        "trained": {name: dataclasses.asdict(row) for name, row in ablation.rows.items()},
        "rows": rows,
    }
    if ablation.is_cumulative:
        prefix, table = "ablation_", ablation_scores.cumulative_table(rows)
    else:
        prefix, table = "one_change_", ablation_scores.one_change_table(rows)
    path = record.write(chosen.out, device, content, prefix=prefix)
    print(f"{table}\n\nwritten to {path}")


if __name__ == "__main__":
    main()
