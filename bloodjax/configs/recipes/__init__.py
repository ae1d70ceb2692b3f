"""Recipes for any network: clean, fast and robust."""
