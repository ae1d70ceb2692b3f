"""Trained classifiers: predictions, scores, ensembles, soups, robustness."""
