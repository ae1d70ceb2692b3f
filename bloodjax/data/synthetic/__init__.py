"""Synthetic images of blood cells, for tests and first runs."""
