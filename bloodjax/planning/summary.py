"""A plan in words: sentences for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bloodjax.report import plan_page

_GIB = 2**30


def as_text(plan: Mapping[str, Any]) -> str:
    """A plan as text for a terminal."""
    lines = [title(plan), "", *(f"  {line}" for line in memory(plan))]
    for name, figures in steps(plan).items():
        lines += ["", f"  {name}", *(f"    {line}" for line in facts(plan, figures))]
        lines += [f"    {row}" for row in _table(figures)]
    for line in times(plan):
        lines += ["", f"  {line}"]
    return "\n".join([*lines, "", *(f"  {note}" for note in plan["notes"]), ""])


def page(plan: Mapping[str, Any]) -> str:
    """A plan as a page."""
    sections = [
        {
            "name": name,
            "facts": facts(plan, figures),
            "unit": unit(figures),
            "kinds": table(figures),
            "stages": table(figures, "by_stage"),
            "operations": figures["operations"] or (),
        }
        for name, figures in steps(plan).items()
    ]
    words = {"title": title(plan), "memory": memory(plan), "times": times(plan)}
    return plan_page.build(plan, sections, words)


def title(plan: Mapping[str, Any]) -> str:
    """What is planned, and for which machine."""
    chips = f"{plan['chips']} x {plan['device_kind']}"
    return (
        f"{plan['network']} at {plan['image_size']} px, batch {plan['batch_size']:,} "
        f"({plan['dtype']}, {plan['sharding']}) on {plan['device']}: {chips}; "
        f"by {plan['compiler']}, jax {plan['jax']}"
    )


def steps(plan: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The steps that were compiled, by name."""
    found = {f"{name}: training step": each for name, each in plan["phases"].items()}
    if plan["evaluation"]:
        found["evaluation: prediction step"] = plan["evaluation"]
    if plan["features"]:
        found["features of the frozen backbone"] = plan["features"]
    return found


def memory(plan: Mapping[str, Any]) -> list[str]:
    """Whether the run fits, and the largest batch."""
    limit = plan["memory_bytes"] / _GIB
    fits = "It fits" if plan["fits"] else "It does NOT fit"
    lines = [f"{fits}: a chip has {limit:,.2f} GiB for a program."]
    where = "stay on each chip" if plan["images_on_device"] else "stream from the host"
    lines.append(f"{plan['images']['train']:,} training images {where}: {plan['images']['origin']}")
    if plan["largest_batch_size"] is not None:
        lines.append(
            f"Largest batch that fits: {plan['largest_batch_size']:,} "
            f"({plan['largest_batch_size_is']})."
        )
    elif plan["largest_batch_size_is"] != "not searched":
        lines.append("Largest batch that fits: none of those that were compiled.")
    return lines


def facts(plan: Mapping[str, Any], figures: Mapping[str, Any]) -> list[str]:
    """A step's figures outside the table, one sentence each."""
    peak = figures["peak_bytes"] / _GIB
    if figures["temp_bytes"] is None:
        return [f"Peak memory per chip: the compiler needs {peak:,.2f} GiB and gave up."]
    lines = [
        f"Peak memory per chip: {peak:,.2f} GiB (arguments {_gib(figures, 'argument')}, "
        f"temporaries {_gib(figures, 'temp')} GiB)."
    ]
    if figures["estimated_step_seconds"] is None:
        lines.append("Step time: unknown; this compiler estimates none.")
    else:
        links = figures["estimated_collective_seconds"]
        kernels = figures["estimated_kernel_seconds"]
        lines.append(
            f"Step time (estimate): {1e3 * figures['estimated_step_seconds']:,.2f} ms, "
            f"{figures['images_per_second']:,.0f} images/s; "
            f"{figures['estimated_cycles'] / 1e6:,.2f} M cycles"
            + (f", Pallas kernels at least {1e3 * kernels:,.2f} ms" if kernels else "")
            + (f", collectives {1e3 * links:,.2f} ms." if plan["chips"] > 1 else ".")
        )
    roofline = figures["roofline"]
    bound = (
        f"Roofline of the program on a chip: {_ms(roofline['compute_seconds'])} for "
        f"{figures['flops'] / 1e9:,.1f} GFLOP, {_ms(roofline['memory_seconds'])} for "
        f"{figures['main_memory_bytes'] / 1e9:,.2f} GB of main memory"
    )
    most = roofline["images_per_second_at_most"]
    lines.append(f"{bound}: at most {most:,.0f} images/s." if most else f"{bound}.")
    if figures.get("mfu") is not None:
        lines.append(
            f"Model FLOP utilisation (estimate): {figures['mfu']:.1%}, at "
            f"{figures['model_flops_per_image'] / 1e9:,.3g} GFLOP per image."
        )
    if figures["collectives"]:
        kinds = ", ".join(
            f"{row['number']:,.0f} {kind} ({row['bytes'] / 1e6:,.2f} MB)"
            for kind, row in figures["collectives"].items()
        )
        needed = figures.get("needed_collective_bytes")
        of = f"; parameters need {needed / 1e6:,.2f} MB" if needed else ""
        lines.append(f"Collectives: {kinds}{of}.")
    kinds = {
        "recomputed": "Recomputed to save memory",
        "copies": "Copied or laid out anew",
        "moves": "Moved between memories meanwhile",
    }
    for key, what in kinds.items():
        row = figures[key]
        if row["operations"]:
            cycles = f", {row['cycles'] / 1e6:,.2f} M cycles" if row["cycles"] else ""
            lines.append(
                f"{what}: {row['operations']:,} operations, {row['bytes'] / 1e6:,.1f} MB{cycles}."
            )
    if figures["operations_without_estimate"]:
        lines.append(
            f"Without an estimate: {figures['operations_without_estimate']} operations "
            f"({', '.join(figures['without_estimate'])})."
        )
    if figures["loops_of_unknown_length"]:
        lines.append(
            f"{figures['loops_of_unknown_length']} loops of unknown length are counted once."
        )
    return lines


def times(plan: Mapping[str, Any]) -> list[str]:
    """Time of an epoch and of the run."""
    if not plan["epoch_seconds"]:
        return []
    each = ", ".join(f"{name} {_duration(s)}" for name, s in plan["epoch_seconds"].items())
    lines = [f"An epoch with validation (estimate): {each}."]
    if plan["run_seconds"] is not None:
        lines.append(
            f"The run (estimate): {_duration(plan['run_seconds'])} if no phase stops early, "
            "without reading data, compiling, saving and the last evaluation."
        )
    return lines


def table(figures: Mapping[str, Any], key: str = "by_kind") -> list[tuple[str, float, float]]:
    """Rows of a step's table: kind, millions of cycles or megabytes, and share."""
    rows = figures[key] or {}
    total = sum(rows.values()) or 1
    return [(kind, value / 1e6, value / total) for kind, value in rows.items() if value]


def unit(figures: Mapping[str, Any]) -> str:
    """What the numbers in `table` are."""
    return "M cycles" if figures.get("by_kind_unit") == "cycles" else "MB"


def _table(figures: Mapping[str, Any]) -> list[str]:
    rows = table(figures)
    if not rows:
        return []
    stages = ", ".join(f"{stage} {share:.0%}" for stage, _, share in table(figures, "by_stage"))
    lines = [f"By stage: {stages}.", f"{unit(figures):>10} {'share':>7}  kind"]
    return lines + [f"{value:10,.3f} {share:7.1%}  {kind}" for kind, value, share in rows]


def _gib(figures: Mapping[str, Any], key: str) -> str:
    return f"{figures[f'{key}_bytes'] / _GIB:,.2f}"


def _ms(seconds: float | None) -> str:
    return "an unknown time" if seconds is None else f"{1e3 * seconds:,.2f} ms"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
