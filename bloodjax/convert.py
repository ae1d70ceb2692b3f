"""Writes a network's weights, whatever their source, as one file of our own.

python -m bloodjax.convert --model=NAME --weights=FILE_OR_HUB_ID --out=FILE.safetensors

`--weights` takes what `config.model.weights` does: a `.safetensors`, a `.pth` of PyTorch, a `.h5`
of Keras, hf:OWNER/NAME, package:NAME, or imagenet, the network's default. The file holds float32
arrays under our names, and in its metadata what their use needs: mean and std, flavour, size,
interpolation, licence, citation and where they came from. `--config.model.weights=FILE` takes it.
"""

from __future__ import annotations

from bloodjax.cli import command

_MODEL = command.flags.DEFINE_string(
    "model", None, "The network; python -m bloodjax.list_models lists them."
)
_WEIGHTS = command.flags.DEFINE_string("weights", None, "A file, hf:, package: or imagenet.")
_OUT = command.flags.DEFINE_string("out", None, "The file to write, *.safetensors.")
_FLAVOUR = command.flags.DEFINE_string(
    "flavour", "", "Whose padding and epsilons the network has; by default the weights'."
)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.cli import console
    from bloodjax.errors import UserError
    from bloodjax.models import registry
    from bloodjax.pretrained import bloodjax_file, load

    out = command.local_path("out")
    if out.suffix != ".safetensors":
        raise UserError(f"--out={out}: suffix {out.suffix!r}, expected .safetensors")
    if not out.parent.is_dir():
        raise UserError(f"--out={out}: no folder {out.parent}")
    name = _MODEL.value
    registry.family(name)  # an unknown name is the first thing to say
    weights = load.read(name, _WEIGHTS.value, _FLAVOUR.value)
    bloodjax_file.write(out, name, weights.num_classes, weights.source, load.classifier(weights)[1])
    classes = f"{weights.num_classes} classes" if weights.num_classes else "no classifier"
    console.log_info(f"{name}, {classes}, flavour {weights.source.flavour}: written to {out}")


if __name__ == "__main__":
    command.run(main, required=("model", "weights", "out"))
