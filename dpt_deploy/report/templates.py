"""The Jinja2 environments of the report. In both, whatever a template prints is escaped unless it is marked as safe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import missing_package

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent / "templates"


class Markdown(str):
    """Text that is Markdown already."""


def html_environment() -> Environment:
    """For templates that make HTML."""
    return _environment(autoescape=True)


def markdown_environment() -> Environment:
    """For templates that make Markdown. The filter `code` prints a code span, `markdown` prints text as it is."""
    environment = _environment(autoescape=False, finalize=escape_markdown)
    environment.filters |= {"code": code_span, "markdown": Markdown}
    return environment


def escape_markdown(value: Any) -> str:
    """A value as one line of Markdown text in which nothing is markup, HTML or the end of a table's cell."""
    if isinstance(value, Markdown):
        return value
    text = re.sub(r"\s+", " ", str(value))
    # An underscore within a word marks nothing; escaped, it would only make the source hard to read.
    text = re.sub(r"[\\`*\[\]|~$#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code_span(value: Any) -> Markdown:
    """A value as a code span, or as escaped text if a code span cannot hold it."""
    text = str(value)
    return Markdown(escape_markdown(text) if not text or re.search(r"[`|<\n]", text) else f"`{text}`")


def _environment(**options: Any) -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise missing_package("jinja2", "cli", "write the report") from error
    return Environment(loader=FileSystemLoader(FOLDER), undefined=StrictUndefined, trim_blocks=True,
                       lstrip_blocks=True, keep_trailing_newline=True, **options)
