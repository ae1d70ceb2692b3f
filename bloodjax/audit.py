"""Finds junk images, duplicates, label conflicts and leakage in datasets and between them.

python -m bloodjax.audit --data=SPEC [--data=SPEC2 ...] [--out=DIR]
"""

from __future__ import annotations

from bloodjax.cli import command

_DATA = command.flags.DEFINE_multi_string(
    "data", None, "SPEC: Labelled images. Repeat it to look for leakage between several."
)
command.flags.DEFINE_string("out", "audit", "DIR: Folder for audit.json and index.html.")
_SIZE = command.flags.DEFINE_integer(
    "image_size", 96, "PIXELS: Side of the images when they are compared."
)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.cli import console
    from bloodjax.data import audit, sources
    from bloodjax.report import audit_page

    datasets = {spec: sources.load(spec, _SIZE.value) for spec in _DATA.value}
    findings = audit.audit(datasets)
    out = command.local_path("out")
    audit_page.write(findings, datasets, out)
    skipped = "".join(f"; skipped: {line}" for line in findings.left_out)
    console.log_info(
        f"{findings.n:,} images: {len(findings.junk):,} junk, "
        f"{len(findings.exact_duplicates)} groups of exact and {len(findings.near_duplicates)} of "
        f"near duplicates, {len(findings.label_conflicts)} label conflicts, "
        f"{len(findings.leakage)} leaks{skipped}; see {out / 'index.html'}"
    )


if __name__ == "__main__":
    command.run(main, name="audit", required=("data",), example="--data=train.zip --data=test.zip")
