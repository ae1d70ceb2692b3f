"""Trained classifiers in the formats of other tools."""
