"""Times all implementations of the depthwise convolution on this device, forward and backward.

python -m benchmarks.depthwise [--batch=128] [--dtypes=bfloat16,float32] [--forms=native,...]
                               [--cases=7:1:24:128,...] [--seconds=600] [--out=benchmarks/results]

A case is KERNEL:STRIDE:SIDE:CHANNELS; by default those of ConvNeXt-B, EfficientNet-B0 and
MobileNet V1 at 96 pixels. Cases are timed in order until the time is over. A form that does not
compile, or whose output differs from the others', is named and left out. The results are written to
OUT/DEVICE/depthwise_DATE.json. The standard output gets a Markdown table with the fastest form of
each case and, on CUDA, the corresponding value of `bloodjax.ops.depthwise_gpu.CUDA_FORMS`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import pathlib
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import record
from benchmarks.depthwise_forms import DIRECTIONS, FORMS, Case, prepare

_ROUNDS = 5
_WINDOW_SECONDS = 0.03  # Duration of one form in a round.
_HOPELESS = 20.0  # A form this many times slower than the fastest is timed once.
_GAIN = 0.95  # A form replaces native if it takes less than this share of native's time.
_TOLERANCE = {
    "float32": 1e-2,
    "bfloat16": 5e-2,
}  # Relative to the largest value; a GPU may compute in TF32.

_CASES = (
    # ConvNeXt-B
    *((7, 1, 24, 128), (7, 1, 12, 256), (7, 1, 6, 512), (7, 1, 3, 1024)),
    # EfficientNet-B0
    *((3, 1, 48, 32), (3, 2, 48, 96), (3, 1, 24, 144), (5, 2, 24, 144), (5, 1, 12, 240)),
    *((3, 2, 12, 240), (3, 1, 6, 480), (5, 1, 6, 480), (5, 1, 6, 672), (5, 2, 6, 672)),
    *((5, 1, 3, 1152), (3, 1, 3, 1152)),
    # MobileNet V1
    *((3, 2, 48, 64), (3, 1, 24, 128), (3, 2, 24, 128), (3, 1, 12, 256), (3, 2, 12, 256)),
    *((3, 1, 6, 512), (3, 2, 6, 512), (3, 1, 3, 1024)),
)


def time_case(case: Case, direction: str, forms: tuple[str, ...]) -> dict[str, Any]:
    """Times forms of one direction in rounds.

    Args:
      case: The shapes.
      direction: One of `DIRECTIONS`.
      forms: Names of forms.

    Returns:
      `case`; `direction`; `forms`: name -> `seconds` by round, their `median`, and `difference`
      from the first working form relative to the largest value, or `error`; and `best`: our fastest
      form.
    """
    arrays, found, running = case.arrays(), {}, {}
    first = None
    for name in forms:
        try:
            timed = prepare(name, direction, case, arrays)
        except Exception as error:  # Any error of a compiler: the form is left out, with a message.
            found[name] = {"error": _line(error)}
            continue
        first = timed.result if first is None else first
        difference = float(np.abs(timed.result - first).max() / np.abs(first).max())
        if not difference <= _TOLERANCE[case.dtype]:  # This form rejects NaN too.
            found[name] = {"error": f"differs by {difference:.1e} of the largest value"}
            continue
        timed.result = None
        found[name], running[name] = {"difference": difference, "seconds": []}, timed
    _rounds(running, found)
    for name in running:
        found[name]["median"] = statistics.median(found[name]["seconds"])
    ours = [name for name in running if name != "torch"]
    best = min(ours, key=lambda name: found[name]["median"], default=None)
    return {
        "case": dataclasses.asdict(case),
        "direction": direction,
        "forms": found,
        "best": best,
    }


def _rounds(running: dict[str, Any], found: dict[str, Any]) -> None:
    warm = {name: timed.seconds(1) for name, timed in running.items()}
    fastest = min(warm.values(), default=0.0)
    order = []
    for name, seconds in warm.items():
        if seconds > max(_HOPELESS * fastest, _WINDOW_SECONDS):
            found[name]["seconds"].append(seconds)
        else:
            order.append(name)
    # A single call includes waiting for its result, so the number of calls is computed again.
    times = {name: max(1, round(_WINDOW_SECONDS / running[name].seconds(3))) for name in order}
    for _ in range(_ROUNDS):
        for name in order:
            found[name]["seconds"].append(running[name].seconds(times[name]))
        order = order[1:] + order[:1]  # Another form goes first.


def table(results: list[dict[str, Any]]) -> str:
    """Formats results of `time_case` as a Markdown table, in microseconds."""
    forms = list(dict.fromkeys(name for result in results for name in result["forms"]))
    lines = [
        f"| kernel, stride, map, channels | dtype | direction | {' | '.join(forms)} | best |",
        "|---" * (4 + len(forms)) + "|",
    ]
    for result in results:
        case, found = result["case"], result["forms"]
        cells = [
            f"{found[form]['median'] * 1e6:,.1f}" if "median" in found.get(form, {}) else "-"
            for form in forms
        ]
        shape = f"{case['kernel']}x{case['kernel']}, {case['stride']}, "
        shape += f"{case['side']}x{case['side']}, {case['channels']}"
        start = f"| {shape} | {case['dtype']} | {result['direction']} | "
        lines.append(start + " | ".join(cells) + f" | {result['best']} |")
    return "\n".join(lines)


def cuda_forms(results: list[dict[str, Any]]) -> dict[tuple, tuple[tuple[int, str], ...]]:
    """The value of `depthwise_gpu.CUDA_FORMS` for these results of `time_case`.

    The times of cases that differ only in channels are added. A form replaces native if it is
    faster by a margin.
    """
    totals: dict[tuple, dict[int, dict[str, float]]] = {}
    for result in results:
        case, found = result["case"], result["forms"]
        key = (result["direction"], case["kernel"], case["stride"], case["dtype"])
        sums = totals.setdefault(key, {}).setdefault(case["side"], {})
        for name in ("native", "shifted", "pallas"):
            sums[name] = sums.get(name, 0.0) + found.get(name, {}).get("median", float("inf"))
    entries = {}
    for key, sides in totals.items():
        steps: list[tuple[int, str]] = []
        for side, sums in sorted(sides.items()):
            best = min(sums, key=sums.get)
            best = best if sums[best] < _GAIN * sums["native"] else "native"
            if steps and steps[-1][1] == best:
                steps.pop()
            steps.append((side, best))
        if any(name != "native" for _, name in steps):
            entries[key] = tuple(steps)
    return entries


def _versions() -> dict[str, str]:
    found = {}
    for name in ("jax", "jaxlib", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _parse_case(text: str, batch: int, dtype: str) -> Case:
    numbers = text.split(":")
    if len(numbers) != 4 or not all(n.isdigit() for n in numbers):
        sys.exit(f"error: --cases: {text!r}, expected KERNEL:STRIDE:SIDE:CHANNELS")
    return Case(*map(int, numbers), batch, dtype)


def _arguments(platform: str) -> argparse.Namespace:
    cpu = platform == "cpu"
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.depthwise",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch", type=int, default=16 if cpu else 128)
    parser.add_argument("--dtypes", default="float32" if cpu else "bfloat16,float32")
    parser.add_argument("--forms", default=",".join(FORMS[platform]))
    parser.add_argument("--cases", default=",".join(":".join(map(str, c)) for c in _CASES))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    chosen = parser.parse_args()
    for flag, known in (("forms", FORMS[platform]), ("dtypes", tuple(_TOLERANCE))):
        values = tuple(getattr(chosen, flag).split(","))
        unknown = [value for value in values if value not in known]
        if unknown:
            parser.error(f"--{flag}: {unknown[0]!r}, expected some of {', '.join(known)}")
        setattr(chosen, flag, values)
    return chosen


def _measure(cases, forms, seconds) -> tuple[list[dict], list[dict], str]:
    """Results, cases left out for lack of time, and an error that ended the run, or ""."""
    began, results, left_out = time.perf_counter(), [], []
    for case in cases:
        if results and time.perf_counter() - began > seconds:
            left_out.append(dataclasses.asdict(case))
            continue
        for direction in DIRECTIONS:
            try:
                results.append(time_case(case, direction, forms))
            except (Exception, KeyboardInterrupt) as error:  # A failed device does not recover.
                return results, left_out, f"{direction}: {_line(error)}"
            print(summary(results[-1]), file=sys.stderr, flush=True)
    return results, left_out, ""


def main() -> None:
    """Runs the command."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # Leaves memory for PyTorch.
    platform = jax.default_backend()
    chosen = _arguments(platform)
    cases = [
        _parse_case(text, chosen.batch, dtype)
        for dtype in chosen.dtypes
        for text in chosen.cases.split(",")
    ]
    device = record.device_name(platform, jax.devices()[0].device_kind)
    results, left_out, failure = _measure(cases, chosen.forms, chosen.seconds)
    print(table(results))
    if platform == "gpu":
        print("\nCUDA_FORMS = {")
        for key, steps in cuda_forms(results).items():
            print(f"    {key}: {steps},")
        print("}")
    if left_out:
        print(f"\nleft out for lack of time: {len(left_out)} of {len(cases)} cases")
    content = {"versions": _versions(), "results": results, "left_out": left_out}
    print(f"\nwritten to {record.write(chosen.out, device, content, 'depthwise_')}")
    if failure:
        sys.exit(f"error: {failure}")


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:300]


def summary(result: dict[str, Any]) -> str:
    """Formats a result in one line, and one more for each form that was left out."""
    case = Case(**result["case"])
    lines = [f"{case} {result['direction']}: best {result['best']}"]
    for name, found in result["forms"].items():
        if "error" in found:
            lines.append(f"  {name} left out: {found['error']}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
