"""Looks for what is wrong with data sets: junk, duplicates, label conflicts, leakage between them.

python -m bloodjax.audit --data=SPEC [--data=SPEC2 ...] [--out=DIR]
"""

from __future__ import annotations

from bloodjax.cli import command

_DATA = command.flags.DEFINE_multi_string(
    "data", None, "A SPEC; several are compared with each other."
)
command.flags.DEFINE_string("out", "audit", "The folder for audit.json and index.html.")
_SIZE = command.flags.DEFINE_integer(
    "image_size", 96, "Side in pixels at which images are compared."
)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.cli import console
    from bloodjax.data import sources
    from bloodjax.data.audit import audit
    from bloodjax.report import audit_page

    datasets = {spec: sources.load(spec, _SIZE.value) for spec in _DATA.value}
    findings = audit.audit(datasets)
    out = command.local_path("out")
    audit_page.write(findings, datasets, out)
    left_out = "".join(f"; not looked for: {line}" for line in findings.left_out)
    console.log_info(
        f"{findings.n:,} images: {len(findings.junk):,} junk, "
        f"{len(findings.exact_duplicates)} groups of exact and {len(findings.near_duplicates)} of "
        f"near duplicates, {len(findings.label_conflicts)} label conflicts, "
        f"{len(findings.leakage)} leaks{left_out}; see {out / 'index.html'}"
    )


if __name__ == "__main__":
    command.run(main, required=("data",))
