"""Hooks of the documentation site: pages made of other files, and the configuration reference.

`mkdocs build` calls `on_files` and `on_page_markdown`. Nothing is downloaded.
`python docs/hooks.py` writes the configuration reference, which is kept in the repository.
"""

from __future__ import annotations

import ast
import io
import pathlib
import posixpath
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
DEFAULTS = ROOT / "bloodjax" / "config" / "defaults.py"
# Files of the repository that are pages of the site under another name.
PAGES = {
    "README.md": "index.md",
    "benchmarks/RESULTS.md": "results.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
REFERENCE = ROOT / "docs" / "config-reference.md"
_MARKERS = "<!-- reference: made by python docs/hooks.py -->", "<!-- /reference -->"
_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")


def site_links(text: str, path: str) -> str:
    """The text of a repository's file, with its links as the site needs them.

    Args:
      text: Markdown.
      path: the file's path in the repository, which its links are relative to.
    """
    page = _page(path)

    def replaced(match: re.Match) -> str:
        link = match[1]
        if "://" in link or link.startswith("mailto:"):
            return link
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        return posixpath.relpath(_page(target), posixpath.dirname(page) or ".")

    return _LINK.sub(replaced, text)


def _page(path: str) -> str:
    """A repository's file as the site calls it."""
    return PAGES.get(path, path.removeprefix("docs/"))


def on_files(files, config):
    """Adds the pages that are made of files outside docs/."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        text = site_links((ROOT / path).read_text("utf-8"), path)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Mends links out of docs/."""
    if page.file.src_uri in PAGES.values():
        return markdown
    return site_links(markdown, f"docs/{page.file.src_uri}")


def filled_reference(text: str) -> str:
    """The page of the configuration reference, with the keys as they are now.

    Args:
      text: The page as it is.
    """
    from bloodjax.config.defaults import defaults
    from bloodjax.config.validation import RULES

    expected = {key: rule[1] for key, rule in RULES.items()}
    about = comments(DEFAULTS.read_text("utf-8"))
    reference = config_reference(flatten(defaults().to_dict()), about, expected)
    begin, end = _MARKERS
    head, tail = text.partition(begin)[0], text.partition(end)[2]
    return f"{head}{begin}\n\n{reference}\n\n{end}{tail}"


def config_reference(
    values: Mapping[str, Any], about: Mapping[str, str], expected: Mapping[str, str]
) -> str:
    """Every config key as Markdown, a section for each group.

    Args:
      values: key -> default, such as {"data.image_size": 96}. The keys of the phases `head` and
        `finetune` share a row.
      about: key or group -> its comment.
      expected: key -> what its value must be; for keys of a phase, without the phase's name.
    """
    order = {name: i for i, name in enumerate(about)}
    groups: dict[str, list[tuple[int, str]]] = {"": []}
    for key, default in values.items():
        name, shown = key, _literal(default)
        phase = re.match(r"phases\.(\w+)\.(.*)", key)
        if phase:
            name = f"phases.*.{phase[2]}"
            if phase[1] != "head":
                continue
            other = _literal(values[f"phases.finetune.{phase[2]}"])
            shown = shown if other == shown else f"{shown} (`head`), {other} (`finetune`)"
        rule = expected.get(name.removeprefix("phases.*."), "")
        notes = [_escape(about.get(name, "")), f"*{_escape(rule)}*" if rule else ""]
        cells = [f"`{name}`", _type(default), shown, "<br>".join(filter(None, notes))]
        row = "| " + " | ".join(cells) + " |"
        groups.setdefault(name.rpartition(".")[0], []).append((order.get(name, len(order)), row))
    parts = []
    for group, rows in sorted(groups.items(), key=lambda item: min(item[1])):
        title = f"## `{group}`" if group else "## Top level"
        note = _escape(about.get(group, ""))
        lines = ["| key | type | default | meaning, *allowed values* |", "|---|---|---|---|"]
        table = "\n".join(lines + [row for _, row in sorted(rows)])
        parts.append("\n\n".join(filter(None, [title, note, table])))
    return "\n\n".join(parts)


def comments(source: str) -> dict[str, str]:
    """Each config key or group in the source of `defaults.py`, in its order, with its comment.

    A key's comment is the lines above it and what follows it on its own line. Keys of a phase are
    named `phases.*.KEY`.
    """
    tree = ast.parse(source)
    above, beside = _comment_lines(source)
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    found: dict[str, str] = {}

    def visit(node: ast.expr, prefix: str, line: int) -> None:
        for key, value in _entries(node, functions):
            name = re.sub(r"^phases\.\w+", "phases.*", f"{prefix}{key.value}")
            # The comment of a group on one line is the group's, not that of its keys.
            own = [above.get(key.lineno, ""), beside.get(key.lineno, "")]
            text = " ".join(filter(None, own)) if key.lineno != line else ""
            found[name] = found.get(name) or text
            visit(value, f"{prefix}{key.value}.", key.lineno)

    visit(_returned(functions["defaults"]), "", 0)
    return found


def _entries(node: ast.expr, functions: Mapping[str, ast.FunctionDef]) -> list[tuple]:
    """The keys and values of a dict, a call that is given one, or a function that returns one."""
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in functions:
            return _entries(_returned(functions[name]), functions)
        return _entries(node.args[0], functions) if node.args else []
    if not isinstance(node, ast.Dict):
        return []
    pairs = zip(node.keys, node.values, strict=True)
    return [(k, v) for k, v in pairs if isinstance(k, ast.Constant)]


def _returned(function: ast.FunctionDef) -> ast.expr:
    return next(node.value for node in ast.walk(function) if isinstance(node, ast.Return))


def _comment_lines(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Comments by line: those that end just above it, and those on the line itself."""
    above, beside, block, last = {}, {}, [], 0
    lines = source.splitlines()
    for token in _comment_tokens(source):
        line, column = token.start
        text = token.string.removeprefix("#").strip()
        if lines[line - 1][:column].strip():
            beside[line] = text
            continue
        block = [*block, text] if line == last + 1 else [text]
        last = line
        above.pop(line, None)
        above[line + 1] = " ".join(block)
    return above, beside


def _comment_tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return (token for token in tokens if token.type == tokenize.COMMENT)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their keys joined with dots, each after `prefix`."""
    found = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _type(value: Any) -> str:
    names = {bool: "bool", int: "int", float: "float", str: "text", tuple: "list"}
    return names.get(type(value), type(value).__name__)


def _literal(value: Any) -> str:
    if value in ("", ()):
        return "empty"
    return f"`{value}`" if isinstance(value, str) else f"`{value!r}`"


def _escape(text: str) -> str:
    """Text as Markdown that shows it as it is, in a table and elsewhere."""
    return re.sub(r"[|<*\[\]]", lambda sign: f"&#{ord(sign[0])};", text)


if __name__ == "__main__":
    REFERENCE.write_text(filled_reference(REFERENCE.read_text("utf-8")), "utf-8")
