"""Augmentation on the device: batched, inside the jitted step, keyed by the example."""
