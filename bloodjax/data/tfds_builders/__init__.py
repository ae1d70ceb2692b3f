"""tensorflow_datasets builders for local files; none needs TensorFlow."""
