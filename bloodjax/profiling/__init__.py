"""Where a training step spends its time."""
