"""Makes the README's speed tables of the results that lie in benchmarks/results.

python -m benchmarks.tables [--results=benchmarks/results] [--readme=README.md]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys

from benchmarks.tasks import Task

_BEGIN, _END = "<!-- benchmarks: made by python -m benchmarks.tables -->", "<!-- /benchmarks -->"
# In a column, the fastest that could be timed stands for all of its kind.
_PEERS = {
    "timm": ("timm", "timm_channels_last", "timm_compiled"),
    "timm, huge pages": ("timm_channels_last_huge_pages",),
    "Keras on JAX": ("keras_jax",),
    "Keras on PyTorch": ("keras_torch",),
}


def table(results: list[dict]) -> str:
    """A Markdown table, a row for each result of `pairing.compare`; unknown ratios are a dash."""
    shown = [
        p for p, names in _PEERS.items() if any(n in r["ratios"] for r in results for n in names)
    ]
    lines = [
        "| task | bloodjax | images/s | " + " | ".join(f"time / {peer}'s" for peer in shown) + " |",
        "|---" * (3 + len(shown)) + "|",
    ]
    for result in results:
        task = Task(**result["task"])
        ours = result["contenders"].get("bloodjax", {}).get("median")
        if ours is None:
            continue
        ratios = [_ratio(result, _PEERS[peer]) for peer in shown]
        cells = [str(task), *_figures(task, result["contenders"]["bloodjax"]), *ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _figures(task: Task, found: dict) -> tuple[str, str]:
    """Our time, and images a second."""
    if "cold_seconds" in found:
        cold = statistics.median(found["cold_seconds"])
        return f"{found['median']:.1f} s; {cold:.1f} s where nothing is compiled", "-"
    return f"{found['median'] * 1e3:.0f} ms", f"{task.batch / found['median']:,.0f}"


def _ratio(result: dict, names: tuple[str, ...]) -> str:
    timed = [name for name in names if name in result["ratios"]]
    if not timed:
        return "-"
    # The fastest peer is the one that ours looks worst beside.
    ratio = max((result["ratios"][name] for name in timed), key=lambda r: r["median"])
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def newest(folder: pathlib.Path) -> tuple[str, list[dict]]:
    """A device's name, and the newest result of each task that was timed on it.

    Files whose names do not begin with a date are another benchmark's.
    """
    device, found = "", {}
    for path in sorted(folder.glob("[0-9]*.json")):
        content = json.loads(path.read_text("utf-8"))
        device = content["device"]
        for result in content["results"]:
            found[str(Task(**result["task"]))] = result
    return device, list(found.values())


def fill(readme: str, results: pathlib.Path) -> str:
    """The README's text with the tables between its two markers.

    Raises:
      ValueError: a marker is missing.
    """
    before, begin, rest = readme.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise ValueError(f"expected {_BEGIN} and {_END}")
    parts = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()):
        device, rows = newest(folder)
        if rows:
            parts.append(f"{device}:\n\n{table(rows)}")
    return f"{before}{_BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{_END}{after}"


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument("--readme", type=pathlib.Path, default=pathlib.Path("README.md"))
    chosen = parser.parse_args()
    try:
        text = fill(chosen.readme.read_text("utf-8"), chosen.results)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {chosen.readme}: {error}")
    chosen.readme.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
