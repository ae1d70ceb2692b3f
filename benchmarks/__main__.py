"""Times bloodjax and other libraries on the same tasks, and writes the results.

python -m benchmarks [--tasks=train:convnext_base:16,...] [--contenders=bloodjax,timm,...]
                     [--seconds=900] [--out=benchmarks/results]

A task is KIND:NETWORK:BATCH[:SIZE]; by default all tasks of RESULTS.md. The seconds are divided
equally between the tasks; setup time is not included. A library that is not installed, or does not
support a task, is named and left out. The results are written to OUT/DEVICE/DATE.json, from which
`python -m benchmarks.tables` fills RESULTS.md.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import statistics
import sys

from benchmarks import pairing, record
from benchmarks.contenders import DEFAULT, add_flag
from benchmarks.tasks import Task, default_tasks


def parse_task(text: str, dtype: str) -> Task:
    """Parses a task of the command line.

    Args:
      text: KIND:NETWORK:BATCH[:SIZE].
      dtype: Compute dtype, "float32" or "bfloat16".

    Raises:
      ValueError: The text has another form.
    """
    match = re.fullmatch(r"(\w+):(\w+):(\d+)(?::(\d+))?", text)
    if not match:
        raise ValueError(f"{text!r}: expected KIND:NETWORK:BATCH[:SIZE]")
    return Task(match[1], match[2], int(match[3]), int(match[4] or 96), dtype)


def _device() -> tuple[str, str]:
    """JAX's platform and a name for the device, determined in a separate process."""
    process = pairing.Process("bloodjax")
    answer = process.ask(task={"kind": "predict", "network": "simple_cnn", "batch": 8, "size": 32})
    process.close()
    if "error" in answer:
        sys.exit(f"error: bloodjax itself cannot run: {answer['error']}")
    about = answer["about"]
    return about["platform"], record.device_name(about["platform"], about["device"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--tasks", default="")
    add_flag(parser, DEFAULT)
    parser.add_argument("--seconds", type=float, default=900.0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    chosen = parser.parse_args()
    return chosen


def main() -> None:
    """Runs the command."""
    chosen = _arguments()
    found, device = _device()
    dtype = "float32" if found == "cpu" else "bfloat16"
    try:
        tasks = [parse_task(text, dtype) for text in filter(None, chosen.tasks.split(","))]
    except ValueError as error:
        sys.exit(f"error: --tasks: {error}")
    tasks = tasks or default_tasks(found)
    results = []
    for task in tasks:
        compare = pairing.compare_starts if task.kind == "start" else pairing.compare
        result = compare(task, chosen.contenders, chosen.seconds / len(tasks))
        results.append(result)
        print(summary(result), flush=True)
    path = record.write(chosen.out, device, {"results": results})
    print(f"written to {path}")


def summary(result: dict) -> str:
    """Formats a task's result, one line per contender."""
    lines = [str(Task(**result["task"]))]
    for name, found in result["contenders"].items():
        if "error" in found:
            lines.append(f"  {name:<30} left out: {found['error']}")
            continue
        line = f"  {name:<30} {found['median'] * 1e3:9.1f} ms"
        if "cold_seconds" in found:
            line += f"   cold {statistics.median(found['cold_seconds']):.1f} s"
        if name in result["ratios"]:
            ratio = result["ratios"][name]
            line += f"   ours / theirs {ratio['median']:.2f} ({ratio['low']:.2f} to "
            line += f"{ratio['high']:.2f})"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
