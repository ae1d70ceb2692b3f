"""Trained classifiers: prediction, evaluation, ensembles, soups and robustness."""
