"""What to take weights for that say nothing of themselves, or say it in timm's words."""

from __future__ import annotations

import json
import pathlib

from bloodjax.errors import UserError
from bloodjax.models import registry
from bloodjax.pretrained.pretrained_cfg import HALF, IMAGENET, PretrainedCfg

# Keras's `preprocess_input`, by family: "caffe" mode takes ImageNet's mean from images in 0..255
# and divides by nothing; "tf" mode maps to -1..1; the others (mode "torch", or layers within the
# network) normalise by ImageNet's mean and std.
_CAFFE = ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255))
_KERAS = {"mobilenet": HALF, "inception": HALF, "vgg": _CAFFE, "resnet": _CAFFE}


def assumed(name: str, location: str, naming: str, default: PretrainedCfg | None) -> PretrainedCfg:
    """The terms of weights of which only their tensors' names are known.

    Args:
      name: of the network.
      location: of the weights.
      naming: of their tensors, a key of the family's rules.
      default: the network's default source, whose terms they share if they share its naming.
    """
    if default and default.rules == naming:
        return PretrainedCfg(
            location, naming, default.flavour, default.mean, default.std, default.size
        )
    known = registry.flavours(name)
    flavour = naming if naming in known else known[0]
    family = registry.family(name)
    mean, std = _KERAS.get(family, IMAGENET) if naming.startswith("keras") else IMAGENET
    if naming == "flat":  # Google's Lite networks
        mean, std = HALF
    return PretrainedCfg(location, naming, flavour, mean, std)


def from_timm(name: str, location: str, naming: str, config: pathlib.Path) -> PretrainedCfg:
    """The terms that the `config.json` beside timm's weights on the Hub states.

    Raises:
      UserError: the file is not what timm writes.
    """
    try:
        content = json.loads(config.read_text("utf-8"))
        stated = content["pretrained_cfg"]
        flavours = registry.flavours(name)
        tf = "tf" in flavours and content["architecture"].startswith("tf_")
        return PretrainedCfg(
            location,
            naming,
            "tf" if tf else naming if naming in flavours else flavours[0],
            tuple(map(float, stated["mean"])),
            tuple(map(float, stated["std"])),
            int(stated["input_size"][-1]),
            stated["interpolation"],
            stated.get("license") or "",
        )
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{location}: config.json is not timm's ({error!r})") from error
