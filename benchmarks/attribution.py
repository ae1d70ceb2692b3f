"""Measures whether attribution maps show what a trained network looks at.

python -m benchmarks.attribution --workdir=DIR [--cells=64] [--curves=24] [--seed=99]

For a run that was trained on rendered cells, it renders other ones, whose outlines are known. It
prints for each method the share of the attribution that lies inside the cell, and the areas under
deletion and insertion curves, next to those of random maps and of the outline itself.
"""

from __future__ import annotations

import argparse

import numpy as np

from bloodjax import attribution
from bloodjax.attribution import curves
from bloodjax.data.synthetic.cells import render_with_masks
from bloodjax.evaluation import classifier

STEPS = 17  # images of a curve


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--cells", type=int, default=64)
    parser.add_argument("--curves", type=int, default=24)
    parser.add_argument("--seed", type=int, default=99)
    args = parser.parse_args()
    model = classifier.load(args.workdir)
    labels = np.arange(args.cells, dtype=np.int32) % 8
    cells, masks = render_with_masks(labels, model.config.data.image_size, args.seed)
    predicted = model.predict(cells).argmax(-1)
    print(f"{args.cells} cells, {(predicted == labels).mean():.1%} right, area {masks.mean():.1%}")
    for name, maps in _maps(model, cells, masks, predicted, args.seed):
        inside = share_inside(maps, masks)
        n = min(args.curves, args.cells)
        areas = [
            curve_areas(model, curve, cells[:n], maps[:n], predicted[:n]).mean()
            for curve in (curves.deletion, curves.insertion)
        ]
        print(
            f"| `{name}` | {inside.mean():.1%} | {np.median(inside):.1%} | {areas[0]:.3f} | "
            f"{areas[1]:.3f} |",
            flush=True,
        )


def _maps(model, cells, masks, predicted, seed):
    for method in attribution.METHODS:
        yield method, np.stack(model.explain(cells, predicted, method)[0])
    rng = np.random.default_rng(seed)
    yield "random", rng.random(masks.shape, np.float32)
    yield "outline", masks + 1e-3 * rng.random(masks.shape, np.float32)


def share_inside(maps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Share of each map's sum that lies inside its mask; 0 for an empty map."""
    total = maps.sum((1, 2))
    return (maps * masks).sum((1, 2)) / np.where(total > 0, total, 1)


def curve_areas(model, curve, cells, maps, classes) -> np.ndarray:
    """Areas under the curves of the classes' probabilities; `curve` is a function of `curves`."""
    images = [curve(cell, heat, STEPS) for cell, heat in zip(cells, maps, strict=True)]
    probabilities = model.predict(np.concatenate(images), tta="none", calibrated=False)
    probabilities = probabilities.reshape(len(cells), STEPS, -1)
    return curves.area(probabilities[np.arange(len(cells)), :, classes])


if __name__ == "__main__":
    main()
