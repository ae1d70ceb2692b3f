"""Builders of tensorflow_datasets' sets from files that the user has; none needs TensorFlow."""
