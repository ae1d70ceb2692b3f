"""Features of images at each stage of a network, such as for a nearest-neighbour search.

python examples/features.py cells.zip features.npz convnext_tiny imagenet
"""

import sys

import jax
import numpy as np

import bloodjax
from bloodjax.models import stages
from bloodjax.pretrained.load import load_weights
from bloodjax.training.step_input import normalise


def main(data: str, out: str, name: str, weights: str, size: int = 96) -> None:
    """Writes the features of all images, averaged over each stage's map, to the file `out`."""
    dataset = bloodjax.load_dataset(data, image_size=size)
    pretrained = load_weights(name, weights)
    model, variables = pretrained.model(len(dataset.classes), replace_head=True)
    cfg = pretrained.pretrained_cfg  # Weights expect images with the mean of their own training.

    @jax.jit
    def features(images):
        x = normalise(images, cfg.mean, cfg.std)
        return [x.mean((1, 2)) for x in stages(model, variables, x)]

    batches = [features(dataset.images[i : i + 32]) for i in range(0, len(dataset), 32)]
    arrays = {
        f"stage_{i}": np.concatenate(parts) for i, parts in enumerate(zip(*batches, strict=True))
    }
    np.savez(out, labels=dataset.labels, names=dataset.names, **arrays)
    print({stage: array.shape for stage, array in arrays.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
