"""Times answers: from uint8 images on the host to class probabilities on the host, call by call.

python -m benchmarks.latency [--networks=efficientnet_lite0,resnet50,...] [--contenders=...]
                             [--seconds=5] [--out=benchmarks/results]

For each network: one image, one image with its eight symmetries (d4), and 64 images, by bloodjax,
by timm in PyTorch (eager, channels last, compiled) and by onnxruntime on the exported file. All
processes have huge pages and random weights. Each contender is set up, and then they take turns of
about 0.3 seconds, whose order alternates, for `--seconds` per task. Compiled PyTorch leaves out d4,
because it compiles each shape for half a minute. A contender that is not installed or fails is
named and left out.

The results are written to OUT/DEVICE/latency_DATE.json, from which `python -m benchmarks.tables`
fills RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import pairing, record
from benchmarks.contenders import ANSWERING, add_flag
from benchmarks.tasks import Task

NETWORKS = (
    "efficientnet_lite0",
    "mobilenetv1_100",
    "efficientnet_b0",
    "resnet50",
    "inception_v3",
    "vgg16",
    "convnext_base",
)
# Kind of a task, and images of a call.
CALLS = (("predict", 1), ("predict_d4", 1), ("predict", 64))
_TURN_SECONDS, _MOST_CALLS = 0.3, 100


def compare(
    network: str,
    contenders: Sequence[str],
    seconds: float,
    *,
    size: int = 96,
    dtype: str = "float32",
    start: Callable[[str], Any] = pairing.Process,
) -> list[dict[str, Any]]:
    """Times every contender on the calls of one network.

    Args:
      network: Our name of the network.
      contenders: Keys of `CONTENDERS`; ratios are the first one's time divided by another's.
      seconds: Duration of all turns of a task; each contender has at least `pairing.MIN_ROUNDS`.
      size: Side of the images in pixels.
      dtype: Compute dtype.
      start: Starts a process of a contender.

    Returns:
      For each task: `task`; `contenders`: name -> `about`, `start_seconds`, `calls`, and `median`
      and `worst` seconds of a call, or `error`; and `ratios`: name -> `median`, `low` and `high` of
      the ratio of the median times in a round.
    """
    processes = {name: start(name) for name in contenders}
    try:
        tasks = [Task(kind, network, batch, size, dtype) for kind, batch in CALLS]
        return [_compare_task(task, processes, seconds) for task in tasks]
    finally:
        for process in processes.values():
            process.close()


def _compare_task(task: Task, processes: dict[str, Any], seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    calls, times = {}, {}
    for name, process in processes.items():
        if "compiled" in name and task.kind == "predict_d4":
            continue
        answer = process.ask(task=dataclasses.asdict(task))
        if "error" in answer:
            found[name] = answer
            continue
        found[name] = {"about": answer["about"], "start_seconds": answer["seconds"]}
        warm = min(process.ask(calls=2)["each"])
        calls[name] = min(max(1, round(_TURN_SECONDS / max(warm, 1e-6))), _MOST_CALLS)
        times[name] = []
    began, order = time.perf_counter(), list(times)
    rounds = 0
    while order and (rounds < pairing.MIN_ROUNDS or time.perf_counter() - began < seconds):
        for name in order:
            processes[name].ask(calls=1)  # Gets back memory that the process lost while it waited.
            times[name].append(processes[name].ask(calls=calls[name])["each"])
        rounds += 1
        order = order[1:] + order[:1]
    for name, turns in times.items():
        each = [seconds for turn in turns for seconds in turn]
        found[name] |= {"calls": len(each), "median": statistics.median(each), "worst": max(each)}
    return {"task": dataclasses.asdict(task), "contenders": found, "ratios": _ratios(times)}


def _ratios(times: dict[str, list[list[float]]]) -> dict[str, dict[str, float]]:
    ratios = {}
    for name in list(times)[1:]:
        pairs = zip(next(iter(times.values())), times[name], strict=True)
        each = sorted(statistics.median(ours) / statistics.median(theirs) for ours, theirs in pairs)
        ratios[name] = {"median": statistics.median(each), "low": each[0], "high": each[-1]}
    return ratios


def summary(result: dict[str, Any]) -> str:
    """Formats a task's result, one line per contender."""
    task = Task(**result["task"])
    lines = [str(task)]
    for name, found in result["contenders"].items():
        if "error" in found:
            lines.append(f"  {name:32} left out: {found['error']}")
            continue
        median, worst = found["median"] * 1e3, found["worst"] * 1e3
        line = f"  {name:32} {median:8.1f} ms, worst {worst:8.1f} ms"
        line += f", {task.batch / found['median']:7.1f} images/s"
        if name in result["ratios"]:
            line += "; bloodjax / this: {median:.2f} ({low:.2f} to {high:.2f})".format(
                **result["ratios"][name]
            )
        lines.append(line)
    return "\n".join(lines)


def table(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a Markdown table, a row for each task."""
    header = ["network", "call", "bloodjax", "worst", "images/s", "fastest other"]
    header += ["its median", "its worst", "bloodjax / it"]
    rows = []
    for result in results:
        task, found = Task(**result["task"]), result["contenders"]
        ours = found.get("bloodjax", {})
        if "median" not in ours:
            continue
        views = ", eight views" if task.kind == "predict_d4" else ""
        call = f"{task.batch} image{'s' * (task.batch > 1)}{views}"
        row = [task.network, call, *_figures(ours), f"{task.batch / ours['median']:,.0f}"]
        others = [name for name in result["ratios"] if "median" in found[name]]
        if not others:
            rows.append([*row, "-", "-", "-", "-"])
            continue
        best = min(others, key=lambda name: found[name]["median"])
        ratio = "{median:.2f} ({low:.2f} to {high:.2f})".format(**result["ratios"][best])
        rows.append([*row, best.removesuffix("_huge_pages"), *_figures(found[best]), ratio])
    return header, rows


def _figures(found: dict[str, float]) -> tuple[str, str]:
    return f"{found['median'] * 1e3:.1f} ms", f"{found['worst'] * 1e3:.1f} ms"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    add_flag(parser, ANSWERING)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    chosen = parser.parse_args()
    chosen.networks = chosen.networks.split(",")
    return chosen


def main() -> None:
    """Runs the command."""
    chosen = _arguments()
    results: list[dict[str, Any]] = []
    for network in chosen.networks:
        for result in compare(network, chosen.contenders, chosen.seconds):
            print(summary(result), flush=True)
            results.append(result)
    ours = [r["contenders"].get("bloodjax", {}) for r in results]
    about = next((found["about"] for found in ours if "about" in found), None)
    if about is None:
        sys.exit("error: bloodjax itself cannot run")
    device = record.device_name(about["platform"], about["device"])
    path = record.write(chosen.out, device, {"results": results}, "latency_")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
