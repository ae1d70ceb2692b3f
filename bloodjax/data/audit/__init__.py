"""Junk, duplicates, outliers, label conflicts and leakage in labelled images."""
