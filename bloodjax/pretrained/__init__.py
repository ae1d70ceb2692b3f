"""Pretrained weights: where they come from, how their tensors map onto ours, and a strict merge."""
