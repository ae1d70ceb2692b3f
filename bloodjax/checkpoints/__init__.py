"""Checkpoints: what a run saves, how it is verified, and how it is restored."""
