"""Self-contained HTML pages from the templates beside this file; the one door to jinja2."""

from __future__ import annotations

import base64
import importlib.metadata

import jinja2

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("bloodjax.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,  # a figure missing from a page is a bug, not a blank
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals["version"] = importlib.metadata.version("bloodjax")
_ENVIRONMENT.filters["thousands"] = "{:,}".format


def render(template: str, **context: object) -> str:
    """The page that `template` (a file name in `templates/`) makes of `context`.

    Every value is escaped, so a file or class name cannot become markup. Templates extend
    `base.html`, and may use `version` and the filter `thousands` (12345 -> 12,345).

    Raises:
      jinja2.UndefinedError: the template uses a value that `context` lacks.
    """
    return _ENVIRONMENT.get_template(template).render(context)


def data_uri(png: bytes) -> str:
    """A PNG file's bytes as the `src` of an `<img>`, so that the page needs no second file."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
