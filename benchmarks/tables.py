"""Fills the tables of benchmarks/RESULTS.md from the results in benchmarks/results.

python -m benchmarks.tables [--results=benchmarks/results] [--page=benchmarks/RESULTS.md]
                            [--parity=FILE]

Each table lies between two marker comments; the text around them is written by hand. `--parity`
takes what pytest's `--parity-table` printed (the command is in RESULTS.md). Its figures replace
those of the same network and reference in benchmarks/results/parity.json, so that the references
can be run in parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import ablation_scores, latency, rare_classes
from benchmarks.contenders import TIMM
from benchmarks.tasks import Task
from bloodjax.cli.console import counted
from bloodjax.models.registry import canonical_name

# In a column, the fastest peer that could be timed represents all of its kind.
_PEERS = {
    "timm": TIMM,
    "Keras on JAX": ("keras_jax",),
    "Keras on PyTorch": ("keras_torch",),
}
_PARITY_FILE = "parity.json"
# Results that have no device; see `benchmarks.compiled`.
_COMPILED_FOLDER = "compiled"
# References of the parity table, with the packages whose versions are recorded.
_REFERENCES = {"timm": "timm", "torchvision": "torchvision", "Keras": "keras"}


def speed_table(results: list[dict]) -> str:
    """A Markdown table, a row for each result of `pairing.compare`; unknown ratios are a dash."""
    shown = [
        p for p, names in _PEERS.items() if any(n in r["ratios"] for r in results for n in names)
    ]
    header = ["task", "bloodjax", "images/s", *(f"time / {peer}'s" for peer in shown), "date"]
    rows = []
    for result in results:
        task = _task(result)
        ours = result["contenders"].get("bloodjax", {}).get("median")
        if ours is None:
            continue
        ratios = [_ratio(result, _PEERS[peer]) for peer in shown]
        figures = _figures(task, result["contenders"]["bloodjax"])
        rows.append([str(task), *figures, *ratios, result["date"]])
    return _markdown(header, rows)


def _task(result: dict) -> Task:
    """What was timed; results until November 2026 have earlier names of networks."""
    task = Task(**result["task"])
    return dataclasses.replace(task, network=canonical_name(task.network))


def _figures(task: Task, found: dict) -> tuple[str, str]:
    """Our time, and images a second."""
    if "cold_seconds" in found:
        cold = statistics.median(found["cold_seconds"])
        return f"{found['median']:.1f} s; {cold:.1f} s with an empty compilation cache", "-"
    return f"{found['median'] * 1e3:.0f} ms", f"{task.batch / found['median']:,.0f}"


def _ratio(result: dict, names: tuple[str, ...]) -> str:
    timed = [name for name in names if name in result["ratios"]]
    if not timed:
        return "-"
    # The largest ratio is the one against the fastest peer.
    ratio = max((result["ratios"][name] for name in timed), key=lambda r: r["median"])
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def newest_tasks(folder: pathlib.Path) -> list[dict]:
    """The newest result of each task that was timed on a device, with its date.

    Files whose names do not begin with a date belong to other benchmarks.
    """
    found = {}
    for path in sorted(folder.glob("[0-9]*.json")):
        content = _read(path)
        for result in content["results"]:
            dated = {**result, "date": content.get("date", "")}
            found[str(_task(result))] = dated
    return list(found.values())


def _speed(folder: pathlib.Path) -> str:
    results = newest_tasks(folder)
    return speed_table(results) if results else ""


def _runs(folder: pathlib.Path) -> str:
    header = ["data", "images", "accuracy (95 % CI)", "colour histogram", "time", "date", "command"]
    rows = []
    for path in sorted(folder.glob("runs_*.json")):
        for run in _read(path)["runs"]:
            accuracy = f"{run['accuracy']:.3f}"
            if "ci95" in run:
                low, high = run["ci95"]
                accuracy += f" ({low:.3f} to {high:.3f})"
            baseline = f"{run['baseline']:.3f}" if "baseline" in run else ""
            command = f"`{run['command']}`" if run["command"] else "same run"
            cells = [run["data"], f"{run['n']:,}", accuracy, baseline, run.get("time", "")]
            rows.append([*cells, run["date"], command])
    return _markdown(header, rows) if rows else ""


def _ablation(folder: pathlib.Path) -> str:
    found = sorted(folder.glob("ablation_*.json"))
    if not found:
        return ""
    content = _read(found[-1])
    return f"{_about(content)}:\n\n{ablation_scores.cumulative_table(content['rows'])}"


def _one_change(folder: pathlib.Path) -> str:
    newest = {}
    for path in sorted(folder.glob("one_change_*.json")):
        content = _read(path)
        newest[content["config"]] = content
    cells = "A cell is the accuracy; that of each seed; and the difference to the whole recipe, "
    cells += "with its 95 % interval over the images of all seeds"
    return "\n\n".join(
        f"`--config={config}`, {_about(content)}. {cells}:\n\n"
        f"{ablation_scores.one_change_table(content['rows'])}"
        for config, content in newest.items()
    )


def _about(content: dict) -> str:
    """Date, epochs, seeds and overrides of an ablation."""
    epochs, seeds = counted(content["epochs"], "epoch"), counted(len(content["seeds"]), "seed")
    options = " ".join(f"--config.{option}" for option in content["overrides"])
    return f"{content['date']}, {epochs}, {seeds}{options and f', `{options}`'}"


def _rare_classes(folder: pathlib.Path) -> str:
    found = sorted(folder.glob("rare_classes_*.json"))
    if not found:
        return ""
    content = _read(found[-1])
    classes, seeds = " and ".join(content["classes"]), counted(len(content["seeds"]), "seed")
    options = " ".join(f"--config.{option}" for option in content["overrides"])
    about = f"{content['date']}, {classes} in turn, {content['kept']} images of it and "
    about += f"{content['others']:,} others, {content['epochs']} epochs, {seeds}"
    return f"{about}{options and f', `{options}`'}:\n\n{rare_classes.table(content['rows'])}"


def _streaming(folder: pathlib.Path) -> str:
    rows = []
    for path in sorted(folder.glob("streaming_*.json")):
        content = _read(path)
        cells = [content["network"], f"{_images(content):,}", f"{content['size']} px"]
        cells.append(f"{max(content['memory_model'].values()) / 1e9:.2f} GB")
        cells.append(f"{content['bytes_beyond_the_model'] / 1e9:.2f} GB")
        rate = content.get("rate")
        if rate:
            low, high = rate["lowest_and_highest"]
            share = f"{rate['rate_streamed_to_resident']:.1%} ({low:.1%} to {high:.1%})"
        rows.append([*cells, share if rate else "-", content["date"]])
    header = ["network", "images", "size", "memory of the network", "memory of the data"]
    return _markdown([*header, "rate / rate on the device", "date"], rows) if rows else ""


def _latency(folder: pathlib.Path) -> str:
    newest = {}
    for path in sorted(folder.glob("latency_*.json")):
        content = _read(path)
        for result in content["results"]:
            newest[str(_task(result))] = (result, content["date"])
    if not newest:
        return ""
    rows = []
    for result, date in newest.values():
        header, found = latency.table([result])
        rows += [[*cells, date] for cells in found]
    return _markdown([*header, "date"], rows)


def _images(content: dict) -> int:
    """The size of the dataset; results until November 2026 have it as "pictures"."""
    return content["images"] if "images" in content else content["pictures"]


def _kill_campaign(folder: pathlib.Path) -> str:
    rows = []
    for path in sorted(folder.glob("kill_campaign_*.json")):
        content = _read(path)
        signals, lost = content["signals"], content["lost_steps"]
        cells = [content["seed"], content["runs"], signals["SIGKILL"], signals["SIGTERM"]]
        cells += [max(lost[name], default=0) for name in ("SIGKILL", "SIGTERM")]
        rows.append([*map(str, cells), str(len(content["faults"])), content["date"]])
    header = ["seed", "runs", "SIGKILL", "SIGTERM", "most steps repeated after SIGKILL"]
    header += ["after SIGTERM", "faults", "date"]
    return _markdown(header, rows) if rows else ""


def _fuzz(folder: pathlib.Path) -> str:
    rows = []
    for path in sorted(folder.glob("fuzz_*.json")):
        content, formats = _read(path), {}
        for outcome, n in content["outcomes"].items():
            name, _, kind = outcome.partition(": ")
            formats.setdefault(name, {})[kind] = n
        loaded = ", ".join(f"{name} {n.get('result', 0)}" for name, n in sorted(formats.items()))
        refused = ", ".join(f"{name} {n.get('refused', 0)}" for name, n in sorted(formats.items()))
        cells = [content["seed"], f"{content['mutations']:,}", refused, loaded]
        cells += [len(content["faults"]), f"{content['longest_s']:.1f} s"]
        rows.append([*map(str, cells), f"{content['peak_bytes'] / 1e9:.2f} GB", content["date"]])
    header = ["seed", "files", "refused in one line", "loaded", "faults", "longest", "peak memory"]
    return _markdown([*header, "date"], rows) if rows else ""


# What fills each pair of markers, from one device's folder.
TABLES: dict[str, Callable[[pathlib.Path], str]] = {
    "runs": _runs,
    "ablation": _ablation,
    "one_change": _one_change,
    "rare_classes": _rare_classes,
    "speed": _speed,
    "latency": _latency,
    "streaming": _streaming,
    "kill_campaign": _kill_campaign,
    "fuzz": _fuzz,
}


def parity_table(found: dict[str, Any]) -> str:
    """The worst errors of `read_parity`'s content, as Markdown."""
    rows = found["rows"]
    references = [r for r in _REFERENCES if any(r in row for row in rows.values())]
    cells = [
        [f"`{name}`", *(f"{row[r]:.0e}" if r in row else "" for r in references)]
        for name, row in sorted(rows.items())
    ]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['date']}, {versions}:\n\n" + _markdown(["network", *references], cells)


def read_parity(text: str) -> dict[str, dict[str, float]]:
    """The table that pytest's `--parity-table` printed, as network -> reference -> error.

    Raises:
      ValueError: there is no such table.
    """
    lines = text.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("| network |")]
    if not starts:
        raise ValueError("expected a table that begins with | network |")
    references = [_reference(cell) for cell in _cells(lines[starts[0]])[1:]]
    rows: dict[str, dict[str, float]] = {}
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        name, *errors = _cells(line)
        row = rows.setdefault(name, {})
        for reference, error in zip(references, errors, strict=True):
            if error:
                row[reference] = max(float(error), row.get(reference, 0.0))
    return rows


def _reference(column: str) -> str:
    """A reference's name in the table: several variants of one library share a column."""
    library = column.partition(" (")[0]
    return next((r for r, package in _REFERENCES.items() if package == library.lower()), library)


def add_parity(path: pathlib.Path, text: str) -> None:
    """Merges what pytest printed into the file of parity results."""
    known = _read(path) if path.exists() else {"rows": {}, "versions": {}}
    new = read_parity(text)
    for name, row in new.items():
        known["rows"][name] = {**known["rows"].get(name, {}), **row}
    for reference in {reference for row in new.values() for reference in row}:
        known["versions"][reference] = importlib.metadata.version(_REFERENCES[reference])
    known["date"] = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


# What a row of the table of compiled steps shows of a result: heading -> (key, unit).
_ESTIMATES = {
    "M cycles": ("cycles", 1e6),
    "GB accessed": ("bytes", 1e9),
    "GB at the peak": ("peak_bytes", 1e9),
}
# Contenders that are ours -> what their rows of the table say of them.
_OURS_COMPILED = {"bloodjax": "", "bloodjax_batchnorm": ", BatchNorm trained"}
_COMPILED_PEERS = {"keras": "Keras", "flax": "Flax"}
_COMPILED_BEFORE = "bloodjax_before"


def compiled_table(rows: list[dict[str, Any]]) -> str:
    """The estimates of a target's compiler as Markdown: ours, and ours / each peer's.

    Args:
      rows: the rows of `benchmarks.compiled`'s results. Cycles are None where the compiler has no
        estimate of them, as for GPUs.
    """
    found: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        task = row["task"]
        key = (task["size"], task["batch"], task["network"])
        found.setdefault(key, {})[row["contender"]] = row
    some = {name for by_contender in found.values() for name in by_contender}
    before = _COMPILED_BEFORE in some
    peers = {name: title for name, title in _COMPILED_PEERS.items() if name in some}
    shown = {t: e for t, e in _ESTIMATES.items() if any(row.get(e[0]) for row in rows)}
    header = ["network", "batch", "px"]
    for title in shown:
        header += [title, *(["before"] if before else []), *(f"/ {t}" for t in peers.values())]
    cells = []
    for (size, batch, network), by_contender in sorted(found.items()):
        for contender, about in _OURS_COMPILED.items():
            if contender not in by_contender:
                continue
            ours = by_contender[contender]
            line = [f"{network}{about}", str(batch), str(size)]
            for key, unit in shown.values():
                line.append(_estimate(ours, key, unit))
                if before:
                    earlier = by_contender.get(_COMPILED_BEFORE, {}) if not about else {}
                    line.append(_estimate(earlier, key, unit))
                line += [_compiled_ratio(ours, by_contender.get(peer, {}), key) for peer in peers]
            cells.append(line)
    return _markdown(header, cells)


def _estimate(row: dict[str, Any], key: str, unit: float) -> str:
    """A figure; cycles are at least this where custom calls have no estimate."""
    if not row.get(key):
        return "-"
    unknown = key == "cycles" and row.get("calls_without_cycles")
    return ("> " if unknown else "") + f"{row[key] / unit:.2f}"


def _compiled_ratio(ours: dict[str, Any], peer: dict[str, Any], key: str) -> str:
    return f"{ours[key] / peer[key]:.2f}" if ours.get(key) and peer.get(key) else "-"


_KERNEL_KINDS = ("fusion", "triton", "cudnn", "cublas", "other")


def kernel_table(rows: list[dict[str, Any]]) -> str:
    """The kernels of compiled steps as Markdown, for targets whose compiler names kernels."""
    header = ["network", "batch", "px", "step", "kernels", "fusions", "Triton", "cuDNN", "cuBLAS"]
    header += ["others", "float32 convolutions", "copies and transposes", "GB of them"]
    cells = []
    for row in sorted(rows, key=lambda row: (row["task"]["network"], row["contender"])):
        kernels, task = row["kernels"], row["task"]
        line = [task["network"], str(task["batch"]), str(task["size"]), row["contender"]]
        line += [str(sum(kernels.values())), *(str(kernels.get(k, 0)) for k in _KERNEL_KINDS)]
        line += [str(row["float32_convolutions"]), str(row["copies"])]
        cells.append([*line, f"{row['copied_bytes'] / 1e9:.2f}"])
    return _markdown(header, cells)


def _compiled(folder: pathlib.Path) -> str:
    parts = []
    for path in sorted(folder.glob("*.json")):
        content = _read(path)
        rows = content["rows"]
        about = f"{content['device']}, jax {', '.join(sorted({row['jax'] for row in rows}))}:"
        parts += [about, compiled_table(rows)]
        if not any(row["cycles"] for row in rows):
            parts.append(kernel_table(rows))
    return "\n\n".join(parts)


def fill(page: str, results: pathlib.Path) -> str:
    """The page with each table between its markers.

    Args:
      page: the text of RESULTS.md.
      results: a folder with one folder for each device, the folder of compiled steps, and
        parity.json.

    Raises:
      ValueError: a marker is missing.
    """
    folders = [path for path in sorted(results.iterdir()) if path.is_dir()]
    devices = [folder for folder in folders if folder.name != _COMPILED_FOLDER]
    for name, make in TABLES.items():
        made = {_device(folder): make(folder) for folder in devices}
        parts = [f"{device}:\n\n{table}" for device, table in made.items() if table]
        page = _between(page, name, "\n\n".join(parts))
    page = _between(page, "compiled", _compiled(results / _COMPILED_FOLDER))
    parity = results / _PARITY_FILE
    return _between(page, "parity", parity_table(_read(parity)) if parity.exists() else "")


def _device(folder: pathlib.Path) -> str:
    return next(_read(path)["device"] for path in sorted(folder.glob("*.json")))


def _between(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}: made by python -m benchmarks.tables -->", f"<!-- /{name} -->"
    before, found, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"expected {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("benchmarks/results"))
    parser.add_argument(
        "--page", type=pathlib.Path, default=pathlib.Path("benchmarks", "RESULTS.md")
    )
    parser.add_argument("--parity", type=pathlib.Path)
    chosen = parser.parse_args()
    try:
        if chosen.parity:
            add_parity(chosen.results / _PARITY_FILE, chosen.parity.read_text("utf-8"))
        text = fill(chosen.page.read_text("utf-8"), chosen.results)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    chosen.page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
