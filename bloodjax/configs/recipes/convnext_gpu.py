"""ConvNeXt-Tiny at 96 px for one GPU of 24 GB or more; the sizes up to Large by override.

The augmentation, the average of weights, the choice of the best epoch and the views of
`recipes/robust`, with what a larger pretrained network needs: a learning rate that falls from block
to block towards the stem, stochastic depth, a longer warm-up, and a soup of the three best epochs.
On a GPU the computation is in bfloat16 (`config.dtype` is auto). The guide to large networks has
the other sizes, with their memory as planned.
"""

from bloodjax.configs.recipes import robust

# Rate of the stem as a fraction of the head's, as of the 12 groups of layers times 0.8 that Liu et
# al. (2022) fine-tune ConvNeXt with; here each block is a group.
_STEM_RATE = 0.8**13


def get_config(blocks: int = 18):
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`.

    Args:
      blocks: Number of the network's blocks: 18 for Tiny, 36 for Small, Base and Large.
    """
    config = robust.get_config()
    config.model.name = "convnext_tiny"
    config.model.drop_path = 0.1
    config.batch_size = 128
    config.steps_per_call = 8
    config.phases.finetune.epochs = 30
    config.phases.finetune.learning_rate = 2e-4
    config.phases.finetune.layer_decay = round(_STEM_RATE ** (1 / (blocks + 1)), 3)
    config.phases.finetune.schedule.warmup = 2.0
    config.soup = 3
    return config
