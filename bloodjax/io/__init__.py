"""Atomic writes, and reading files with one-line errors."""
