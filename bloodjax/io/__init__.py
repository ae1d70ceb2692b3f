"""Files: atomic writes and careful reads."""
