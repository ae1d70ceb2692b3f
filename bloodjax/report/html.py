"""Renders self-contained HTML pages from `templates/`. The only module that imports jinja2."""

from __future__ import annotations

import base64
import importlib.metadata

import jinja2

from bloodjax.cli.console import counted

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("bloodjax.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,  # A missing value is a bug and must not render as a blank.
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals["version"] = importlib.metadata.version("bloodjax")
_ENVIRONMENT.filters["thousands"] = "{:,}".format
_ENVIRONMENT.filters["counted"] = counted


def render(template: str, **context: object) -> str:
    """Renders a page. Values are escaped, so a file or class name cannot become markup.

    Templates extend `base.html`, and may use `version` and the filters `thousands`
    (12345 -> 12,345) and `counted` (`console.counted`: 1 -> 1 image).

    Args:
      template: File name in `templates/`.
      **context: Values for the template.

    Raises:
      jinja2.UndefinedError: `context` lacks a value that the template uses.
    """
    return _ENVIRONMENT.get_template(template).render(context)


def data_uri(file: bytes, kind: str = "png") -> str:
    """An encoded image as the `src` of an `<img>`, so that the page needs no other file.

    Args:
      file: Content of the file.
      kind: Its media type below "image/", such as "jpeg".
    """
    return f"data:image/{kind};base64," + base64.b64encode(file).decode("ascii")
