"""Exports a trained classifier to a file that runs without bloodjax.

python -m bloodjax.export --workdir=DIR --format=stablehlo|onnx|hub --out=FILE_OR_DIR2 [--features]
    [--tta=default] [--quantize=int8] [--push=OWNER/NAME]
"""

from __future__ import annotations

from bloodjax.cli import command

command.flags.DEFINE_string("workdir", None, "DIR: Folder of the run.")
_FORMAT = command.flags.DEFINE_string(
    "format", None, "NAME: stablehlo (runs in jax), onnx (in onnxruntime) or hub (a folder)."
)
command.flags.DEFINE_string(
    "out",
    None,
    "FILE: FILE.stablehlo or FILE.onnx to write, with metadata and a check beside it; for hub, a "
    "new folder.",
)
_FEATURES = command.flags.DEFINE_bool(
    "features", False, "BOOL: Also return the network's features."
)
_TTA = command.flags.DEFINE_string(
    "tta",
    "none",
    "VIEWS: Views to average over: none, default (those of predict), selected, flip, d4, ...",
)
_QUANTIZE = command.flags.DEFINE_string(
    "quantize", "none", "NAME: int8 writes an ONNX file of 8-bit weights and activations."
)
_UNCALIBRATED = command.flags.DEFINE_bool(
    "uncalibrated", False, "BOOL: Export probabilities that are not calibrated."
)
_PUSH = command.flags.DEFINE_string(
    "push", "", "OWNER/NAME: With --format=hub, upload the folder to this repository of the Hub."
)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.cli import console
    from bloodjax.errors import UserError
    from bloodjax.exporting import exporter, hub_folder

    workdir, out = command.local_path("workdir"), command.local_path("out")
    exporter.use_cpu()
    if _FORMAT.value == "hub":
        if _QUANTIZE.value != "none":
            raise UserError(f"--quantize={_QUANTIZE.value}: expected --format=onnx, not hub")
        hub_folder.export_run(
            workdir,
            out,
            features=_FEATURES.value,
            tta=_TTA.value,
            calibrated=not _UNCALIBRATED.value,
            push=_PUSH.value,
        )
        console.log_info(f"written to {out}; its model card is {out / hub_folder.CARD_FILE}")
        return
    if _PUSH.value:
        raise UserError(f"--push={_PUSH.value}: expected --format=hub, not {_FORMAT.value}")
    exporter.export_run(
        workdir,
        _FORMAT.value,
        out,
        features=_FEATURES.value,
        quantize=_QUANTIZE.value,
        tta=_TTA.value,
        calibrated=not _UNCALIBRATED.value,
    )
    console.log_info(f"written to {out}; the script {out}.check.py checks it")


if __name__ == "__main__":
    command.run(
        main,
        name="export",
        required=("workdir", "format", "out"),
        example="--workdir=runs/first --format=onnx --out=cells.onnx",
    )
