"""Converts a network's weights, whatever their format, to bloodjax's own file format.

python -m bloodjax.convert --model=NAME --weights=FILE_OR_HUB_ID --out=FILE.safetensors

`--weights` accepts what `config.model.weights` does: a .safetensors file, a PyTorch .pth, a Keras
.h5, hf:OWNER/NAME, package:NAME, or imagenet for the network's default weights. The output contains
float32 tensors named by bloodjax's variables; its metadata record mean and std, variant, size,
interpolation, licence, citation and origin. Train from it with `--config.model.weights=FILE`.
"""

from __future__ import annotations

from bloodjax.cli import command

_MODEL = command.flags.DEFINE_string(
    "model", None, "NAME: The network; bloodjax models lists them."
)
_WEIGHTS = command.flags.DEFINE_string(
    "weights",
    None,
    "SOURCE: A .safetensors, .pth or .h5 file, hf:OWNER/NAME, package:NAME or imagenet.",
)
_OUT = command.flags.DEFINE_string("out", None, "FILE.safetensors: The file to write.")
_VARIANT = command.flags.DEFINE_string(
    "variant",
    "",
    "NAME: Library whose padding and epsilons the network has, such as timm or keras. By default "
    "the one that the weights were trained with.",
)
_FLAVOUR = command.flags.DEFINE_string("flavour", "", "Former name of --variant.")


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.cli import console
    from bloodjax.errors import UserError
    from bloodjax.io import files
    from bloodjax.pretrained import bloodjax_file
    from bloodjax.pretrained.load import load_weights

    out = command.local_path("out")
    if out.suffix != ".safetensors":
        raise UserError(f"--out={out}: suffix {out.suffix!r}, expected .safetensors")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: no folder {out.parent}")
    files.check_file(out)
    if _FLAVOUR.value:
        console.log_info("--flavour was renamed to --variant; the old name still works")
    weights = load_weights(_MODEL.value, _WEIGHTS.value, _VARIANT.value or _FLAVOUR.value)
    name, cfg = weights.architecture.name, weights.pretrained_cfg
    bloodjax_file.write(out, name, weights.num_classes, cfg, weights.classifier()[1])
    classes = (
        console.counted(weights.num_classes, "class", "classes")
        if weights.num_classes
        else "no classifier"
    )
    console.log_info(f"{name}, {classes}, variant {cfg.variant}: written to {out}")


if __name__ == "__main__":
    command.run(
        main,
        name="convert",
        required=("model", "weights", "out"),
        example="--model=resnet50 --weights=imagenet --out=resnet50.safetensors",
    )
