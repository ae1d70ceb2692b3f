"""Rendered blood cells, for tests and first runs."""
