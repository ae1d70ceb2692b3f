"""Your own training loop: `python examples/own_loop.py cells.zip efficientnet_lite0 imagenet`."""

import sys

import jax
import numpy as np
import optax

import bloodjax
from bloodjax.augment import pipeline, policy
from bloodjax.pretrained.load import load_weights
from bloodjax.training.step_input import normalise


def main(data: str, name: str, weights: str, steps: int = 100, size: int = 96, batch: int = 16):
    """Trains all layers on random batches; returns the network and its variables."""
    dataset, pretrained = bloodjax.load_dataset(data, size), load_weights(name, weights)
    model, variables = pretrained.model(len(dataset.classes), replace_head=True)
    cfg, augmentation = pretrained.pretrained_cfg, policy.parse("d4|brightness(0.2)|stain(0.3)")
    params, stats, tx = variables["params"], variables["batch_stats"], optax.adamw(1e-3)

    def loss_fn(params, stats, key, images, labels):
        images = pipeline.augment(augmentation, jax.random.split(key, batch), images)
        x, state = normalise(images, cfg.mean, cfg.std), {"params": params, "batch_stats": stats}
        logits, new = model.apply(state, x, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, new.get("batch_stats", stats)

    @jax.jit
    def step(params, stats, opt, *args):
        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, stats, *args)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), stats, opt, loss

    opt, key, rng = tx.init(params), jax.random.key(0), np.random.default_rng(0)
    for i in range(steps):
        take = rng.integers(len(dataset), size=batch)
        args = (jax.random.fold_in(key, i), dataset.images[take], dataset.labels[take])
        params, stats, opt, loss = step(params, stats, opt, *args)
        print(f"step {i + 1}: loss {loss:.4f}")
    return model, {"params": params, "batch_stats": stats}


if __name__ == "__main__":
    main(*sys.argv[1:])
