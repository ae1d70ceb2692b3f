"""Finds junk images, duplicates, label conflicts and leakage in datasets and between them.

python -m bloodjax.audit --data=SPEC [--data=SPEC2 ...] [--out=DIR] [--bad_images=skip]
"""

from __future__ import annotations

import dataclasses

from bloodjax.cli import command

_DATA = command.flags.DEFINE_multi_string(
    "data", None, "SPEC: Labelled images. Repeat it to look for leakage between several."
)
command.flags.DEFINE_string("out", "audit", "DIR: Folder for audit.json and index.html.")
_SIZE = command.flags.DEFINE_integer(
    "image_size", 96, "PIXELS: Side of the images when they are compared.", 16, 2048
)
_BAD = command.flags.DEFINE_enum(
    "bad_images",
    "fail",
    ["fail", "skip"],
    "What to do about an unreadable image in a folder or zip.",
)
_CLASSES = command.flags.DEFINE_string(
    "classes", "", "A,B,C: Class names in label order, for a file without its own."
)
_LAYOUT = command.flags.DEFINE_string(
    "layout",
    "auto",
    "LEVELS: What the folders mean, such as class/group; as config.data.layout.",
)
_COLUMNS = command.flags.DEFINE_string("columns", "", command.COLUMNS)
_IMAGES = command.flags.DEFINE_string("images", "", command.IMAGES)


def main(_: list[str]) -> None:
    """Runs the command."""
    from bloodjax.cli import console
    from bloodjax.config import parsed
    from bloodjax.data import audit, sources, spec, statement
    from bloodjax.data.dataset import Dataset
    from bloodjax.data.formats import columns, layout
    from bloodjax.data.options import ReadOptions
    from bloodjax.io import files
    from bloodjax.report import audit_page

    out = command.local_path("out")
    files.check_folder(out)
    spec.check_out(out, _DATA.value)
    spec.check_images(_DATA.value, _IMAGES.value)
    options = ReadOptions(
        bad_images=_BAD.value,
        layout=layout.check(_LAYOUT.value, "--layout"),
        columns=columns.check(_COLUMNS.value, "--columns"),
        images=_IMAGES.value,
    )
    names = parsed.parse_names(_CLASSES.value)

    def load(source: str, options: ReadOptions) -> Dataset:
        return sources.load(source, _SIZE.value, options=options, class_names=names)

    datasets = sources.on_common_scale(
        {source: load(source, options) for source in _DATA.value},
        lambda source, bits: load(source, dataclasses.replace(options, bits=bits)),
    )
    datasets = sources.with_common_names(datasets)
    for line in statement.lines(datasets):
        console.log_info(line)
    findings = audit.audit(datasets)
    audit_page.write(findings, datasets, out)
    for remark in findings.remarks:
        console.log_info(remark)
    skipped = "".join(f"; skipped: {line}" for line in findings.left_out)
    console.log_info(
        f"{console.counted(findings.n, 'image')}: {len(findings.junk):,} junk, "
        f"{console.counted(len(findings.exact_duplicates), 'group')} of exact and "
        f"{len(findings.near_duplicates):,} of near duplicates, "
        f"{console.counted(len(findings.label_conflicts), 'label conflict')}, "
        f"{console.counted(len(findings.leaks), 'leak')}{skipped}; see {out / 'index.html'}"
    )


if __name__ == "__main__":
    command.run(main, name="audit", required=("data",), example="--data=train.zip --data=test.zip")
