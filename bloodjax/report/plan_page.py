"""Writes a plan: the JSON file for programs, and a page beside it."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bloodjax.io.files import atomic_write, make_folder
from bloodjax.report import html, numbers


def build(plan: Mapping[str, Any], sections: Sequence[Mapping[str, Any]], words: Mapping) -> str:
    """Builds a self-contained HTML page.

    Args:
      plan: The plan.
      sections: For each compiled step its `name`, `facts` (sentences), `unit`, and the rows of its
        tables by `kinds` and `stages` (name, value, share) and its dearest `operations`.
      words: `title` of the plan, and sentences on `memory` and `times`.
    """
    return html.render(
        "plan.html",
        plan=plan,
        sections=sections,
        words=words,
        percent=numbers.percent,
        number=lambda value: f"{value:,.3f}",
    )


def write(plan: Mapping[str, Any], page: str, path: pathlib.Path) -> None:
    """Writes a plan to `path` and its page to the same name with the suffix .html.

    Raises:
      UserError: The folder cannot be written to.
    """
    make_folder(path.parent)
    atomic_write(path, json.dumps(plan, indent=2) + "\n")
    atomic_write(path.with_suffix(".html"), page)
