"""Lists the networks: parameters, operations, default weights and their licences.

python -m bloodjax.list_models [--model=NAME|PATTERN] [--size=224]
"""

from __future__ import annotations

from bloodjax.cli import command

_MODEL = command.flags.DEFINE_string(
    "model", None, "NAME: A network, or a pattern such as 'convnext*'. By default all networks."
)
_SIZE = command.flags.DEFINE_integer(
    "size", 224, "PIXELS: Side of the images, for the number of operations.", lower_bound=75
)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax import models
    from bloodjax.models import summary
    from bloodjax.pretrained.pretrained_cfg import DEFAULTS

    names = models.list_models(_MODEL.value or "*")
    if not names:  # an alias, or an unknown name, which raises with the nearest one
        names = [models.canonical_name(_MODEL.value)]
    print(f"{'network':<22}{'parameters':>12}{'GFLOPs':>9}  weights (licence)")
    for name in names:
        cfg = DEFAULTS.get(name)
        weights = f"{cfg.location} ({cfg.licence})" if cfg else "none by default"
        millions, giga = summary.num_parameters(name) / 1e6, summary.flops(name, _SIZE.value) / 1e9
        print(f"{name:<22}{millions:>10.2f} M{giga:>9.2f}  {weights}", flush=True)
        if cfg and len(names) == 1:
            print(f"  variants: {', '.join(models.architecture(name).variants)}")
            print(f"  mean {cfg.mean}, std {cfg.std}, {cfg.size} px")
            print(f"  {cfg.citation}")


if __name__ == "__main__":
    command.run(main, name="models", required=(), example="--model=resnet50 --size=96")
