"""The search spaces inside the package, which `--space=NAME` finds by name."""
