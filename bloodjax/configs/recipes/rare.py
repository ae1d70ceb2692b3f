"""For a class of which only a few dozen training images exist.

Works with any network: `--config.model.name=convnext_tiny`.
"""

from bloodjax.configs.recipes import fast


def get_config():
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`."""
    config = fast.get_config()
    config.data.sampling = "sqrt"
    return config
