"""Pretrained weights: reading files, mapping tensor names, and a strict merge into a network."""
