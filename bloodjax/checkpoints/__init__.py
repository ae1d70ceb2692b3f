"""Checkpoints on the disk: what a run saves, how it proves intact, how it is restored."""
