"""For cells of another laboratory: stain, scale and texture vary more than in `robust.py`.

Works with any network: `--config.model.name=convnext_tiny`. It is the robust recipe with three
operations before the others: background and stains of another smear, cells of half to double the
size, and random filters (Xu et al., 2021, https://arxiv.org/abs/2007.13003), which change the
texture and colour that a classifier of one laboratory relies on.
"""

from bloodjax.configs.recipes import robust


def get_config():
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`."""
    config = robust.get_config()
    config.augment = (
        "d4|smear(0.8, p=0.3)|scale(0.6, p=0.3)|random_conv(0.7, p=0.4)"
        "|choice('microscope', 0.8, 2)|erase(0.5, p=0.25)|mixup(0.2, p=0.25)|cutmix(1.0, p=0.25)"
    )
    return config
