"""Kernels whose plain XLA form is too slow somewhere, each with its own gradient."""
