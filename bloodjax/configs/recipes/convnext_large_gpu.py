"""ConvNeXt-Large at 224 px for one GPU of 40 GB or more, such as an A100, H100 or H200.

`recipes/convnext_gpu` with the largest network and images. The guide to large networks has its
memory, and what to change where it does not suffice.
"""

from bloodjax.configs.recipes import convnext_gpu


def get_config():
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`."""
    config = convnext_gpu.get_config(blocks=36)
    config.model.name = "convnext_large"
    config.model.drop_path = 0.3
    config.data.image_size = 224
    config.batch_size = 64
    config.phases.finetune.epochs = 20
    config.phases.finetune.learning_rate = 1e-4
    return config
