"""For cells of another laboratory: stain, size and colours vary more than in `recipes/robust`.

Works with any network: `--config.model.name=convnext_tiny`. It is the robust recipe with more
operations, and trains longer:

- Background and stains of another smear, and cells of half to double the size.
- For half of the images, the low frequencies of another image's amplitudes (Fourier mixing), which
  exchanges colours and lighting.

Its eight test-time views show the cells in three sizes. Random filters (`random_conv`) are left
out: they help at one of three laboratories and harm at another (docs/guides/new-site.md).
"""

from bloodjax.configs.recipes import robust


def get_config():
    """One phase in which everything trains, from ImageNet weights; give `config.data.train`."""
    config = robust.get_config()
    config.augment = (
        "d4|smear(0.8, p=0.3)|scale(0.6, p=0.3)|fourier(1.0, 0.05, p=0.5)"
        "|choice('microscope', 0.8, 2)|deposits(1.0, p=0.2)|impulse_noise(1.0, p=0.1)"
        "|jpeg(1.0, p=0.1)|pixelate(1.0, p=0.1)"
        "|erase(0.5, p=0.25)|mixup(0.2, p=0.25)|cutmix(1.0, p=0.25)"
    )
    config.phases.finetune.epochs = 32
    config.evaluation.tta = "d4_zoom"
    return config
