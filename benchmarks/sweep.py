"""Whether a sweep beats the config's own values: EfficientNet-Lite0 on a part of the real cells.

python -m benchmarks.sweep --train=FILE.zip --test=SPEC --dir=DIR [--images=2400] [--size=48]
                           [--epochs=5] [--trials=20] [--seed=0] [--flag=value ...]

The images of `--train`, of which every k-th of each class is taken, are for training (two thirds)
and validation. The space is the packaged one, and validation loss is compared. Then the best trial,
and the one with the config's own values, are evaluated on `--test` once. Other flags go to
`bloodjax sweep`. The same command resumes.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Sequence

_RESULT = pathlib.PurePath("sweep", "test.json")


def main() -> None:
    """Runs the benchmark, and prints what it found."""
    options, rest = _arguments()
    options.dir.mkdir(parents=True, exist_ok=True)
    part = options.dir / "part.zip"
    if not part.exists():
        kept = write_part(options.train, part, options.images)
        print(f"{kept} images for training and validation: {part}", flush=True)
    command = [
        *(sys.executable, "-m", "bloodjax.sweep", "--config=efficientnet_lite0", "--test"),
        *(f"--trials={options.trials}", f"--workdir={options.dir / 'sweep'}"),
        *(f"--config.data.train={part}", f"--config.data.test={options.test}"),
        *("--config.data.validation=0.3333", f"--config.data.image_size={options.size}"),
        *("--config.early_stopping.metric=loss", f"--config.seed={options.seed}"),
        f"--config.phases.finetune.epochs={options.epochs}",
        *rest,
    ]
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)
    print(summary(json.loads((options.dir / _RESULT).read_text("utf-8"))[-1]))


def write_part(source: pathlib.Path, target: pathlib.Path, images: int) -> int:
    """Writes a zip with a part of the images of another, in equal steps through each folder.

    Args:
      source: A zip of `<folders>/<class>/<image>`.
      target: The zip to write.
      images: About how many images to take.

    Returns:
      The number of images in `target`.
    """
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as part:
        names = sorted(name for name in archive.namelist() if not name.endswith("/"))
        places: dict[str, int] = {}
        for name in names:
            folder = name.rpartition("/")[0]
            place = places[folder] = places.get(folder, 0) + 1
            # Takes an image where the count of images to take reaches the next whole number.
            if place * images // len(names) > (place - 1) * images // len(names):
                part.writestr(name, archive.read(name))
        return len(part.namelist())


def summary(entry: dict) -> str:
    """Two lines on the evaluation of a sweep on test, from `test.json`."""
    titles = {"best": "best trial", "own": "own values"}
    return "\n".join(
        f"{title} ({entry[role]['trial']}): test accuracy {entry[role]['accuracy']:.4f} "
        f"({entry[role]['ci95'][0]:.4f} to {entry[role]['ci95'][1]:.4f}), log loss "
        f"{entry[role]['nll']:.4f}, n = {entry[role]['n']:,}"
        for role, title in titles.items()
        if role in entry
    )


def _arguments(argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep")
    parser.add_argument("--train", required=True, type=pathlib.Path)
    parser.add_argument("--test", required=True)
    parser.add_argument("--dir", required=True, type=pathlib.Path)
    defaults = {"images": 2400, "size": 48, "epochs": 5, "trials": 20, "seed": 0}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_known_args(argv)


if __name__ == "__main__":
    main()
