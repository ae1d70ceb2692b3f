"""Holds the memory that `bloodjax plan` states against that of the device which is at hand.

python -m benchmarks.plan_memory --device=h200 [--config=quickstart] [--config.key=value ...]
                                 [--out=benchmarks/results]

It plans the run for the machine, trains it on the device, and compares the plan's peak with the
largest that the device's allocator reports. `--device` is the name of the machine for
`bloodjax plan`. Both need memory alone, so a short run is enough. The results are written to
OUT/DEVICE/plan_memory_DATE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import record

# Trains in a process of its own, whose peak is that of this run.
_TRAIN = """
import json, sys
import jax
from bloodjax import config, run
run.train(config.load(sys.argv[1], sys.argv[3:]), sys.argv[2])
stats = [device.memory_stats() or {} for device in jax.local_devices()]
fullest = max(stats, key=lambda each: each.get("peak_bytes_in_use", 0))
print(json.dumps({"kind": jax.devices()[0].device_kind, "stats": fullest}))
"""


def plan(device: str, config: str, overrides: list[str], folder: str) -> dict[str, Any]:
    """The plan of a run, made in a process of its own on the CPU."""
    out = pathlib.Path(folder, "plan.json")
    flags = [f"--config={config}", f"--device={device}", "--search=false", f"--out={out}"]
    flags += [f"--config.{override}" for override in overrides]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    _run("the plan", [sys.executable, "-m", "bloodjax.plan", *flags], environment)
    return json.loads(out.read_text("utf-8"))


def train(config: str, overrides: list[str], folder: str) -> dict[str, Any]:
    """Trains the run on this machine's device.

    Returns:
      `kind` of the device, and `stats`: the `memory_stats` of the fullest one.
    """
    workdir = str(pathlib.Path(folder, "run"))
    command = [sys.executable, "-c", _TRAIN, config, workdir, *overrides]
    return json.loads(_run("the training", command, dict(os.environ)).splitlines()[-1])


def _run(what: str, command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {what} ended with status {done.returncode}")
    return done.stdout


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plan_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", required=True)
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    chosen, rest = parser.parse_known_args()
    unknown = [flag for flag in rest if not flag.startswith("--config.")]
    if unknown:
        parser.error(f"unrecognized argument {unknown[0]}")
    overrides = [flag.removeprefix("--config.") for flag in rest]
    with tempfile.TemporaryDirectory() as folder:
        measured = train(chosen.config, overrides, folder)
        if "peak_bytes_in_use" not in measured["stats"]:
            sys.exit(f"error: {measured['kind']} does not report its memory")
        planned = plan(chosen.device, chosen.config, overrides, folder)

    from bloodjax.planning.planner import compared_with_device

    found = compared_with_device(planned, measured["stats"])
    about = {"config": chosen.config, "overrides": overrides, "machine": chosen.device}
    path = record.write(chosen.out, measured["kind"], {**about, **found}, "plan_memory_")
    print(
        f"{chosen.config}: planned {found['planned_bytes'] / 1e9:.2f} GB, measured "
        f"{found['measured_bytes'] / 1e9:.2f} GB, ratio {found['ratio']:.2f}\nwritten to {path}"
    )


if __name__ == "__main__":
    main()
