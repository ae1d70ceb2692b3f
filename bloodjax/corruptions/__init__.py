"""Image corruptions for robustness benchmarks (NumPy)."""
