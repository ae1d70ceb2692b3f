"""Lists the networks: parameters, operations, default weights and their licences.

python -m bloodjax.list_models [--model=NAME] [--size=224]
"""

from __future__ import annotations

from bloodjax.cli import command

_MODEL = command.flags.DEFINE_string("model", None, "One network; by default all of them.")
_SIZE = command.flags.DEFINE_integer(
    "size", 224, "Pixels a side, for the operations.", lower_bound=75
)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.models import registry, summary
    from bloodjax.pretrained.pretrained_cfg import DEFAULTS

    if _MODEL.value:
        registry.family(_MODEL.value)  # raises with the nearest name
    names = [_MODEL.value] if _MODEL.value else registry.names()
    print(f"{'network':<22}{'parameters':>12}{'GFLOPs':>9}  weights (licence)")
    for name in names:
        source = DEFAULTS.get(name)
        weights = f"{source.location} ({source.licence})" if source else "none by default"
        millions, giga = summary.parameters(name) / 1e6, summary.flops(name, _SIZE.value) / 1e9
        print(f"{name:<22}{millions:>10.2f} M{giga:>9.2f}  {weights}", flush=True)
        if _MODEL.value and source:
            print(f"  flavours: {', '.join(registry.flavours(name))}")
            print(f"  mean {source.mean}, std {source.std}, {source.size} px")
            print(f"  {source.citation}")


if __name__ == "__main__":
    command.run(main, required=())
