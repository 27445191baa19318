"""MkDocs hook: the pages that are made from the project itself, so that nobody writes them twice.

The start page is README.md; options and exit statuses come from the commands, the table of backends from the registry,
the examples from their files. Links between pages are those of the repository, and are turned into those of the site.
"""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from markdown.extensions.toc import slugify  # noqa: E402
from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

from dpt_deploy import backends, cli  # noqa: E402
from dpt_deploy.cli.commands import GROUPS, load  # noqa: E402
from dpt_deploy.cli.help import MARKERS, REGISTRY, paragraph  # noqa: E402

COPIED = {  # page of the site -> file of the repository
    "index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md",
    "demo.md": "demo/model/README.md", "LICENSE.txt": "LICENSE", "curves.png": "demo/model/curves.png",
    "samples.png": "demo/model/samples.png", "steady.png": "benchmarks/results/steady.png",
    "demonstration.png": "benchmarks/results/demonstration.png",
    "demonstration.json": "benchmarks/results/demonstration.json",
}
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for page, source in COPIED.items():
        if source.endswith(".md"):
            content: Any = {"content": with_links_of_the_site((ROOT / source).read_text(encoding="utf-8"), source)}
        else:
            content = {"abs_src_path": str(ROOT / source)}
        files.append(File.generated(config, page, **content))
    for page, make in MADE.items():
        files.append(File.generated(config, page, content=make()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page in docs/ into those of the site."""
    if page.file.generated_by:
        return markdown
    return with_links_of_the_site(markdown, f"docs/{page.file.src_uri}")


def with_links_of_the_site(markdown: str, source: str) -> str:
    """The text of the repository's file `source`, with links to other files turned into links to pages of the site."""
    pages = {path: page for page, path in COPIED.items()}

    def link(found: re.Match[str]) -> str:
        path = (ROOT / source).parent.joinpath(found[1]).resolve().relative_to(ROOT).as_posix()
        if path.startswith("examples/") and path.endswith(".py"):
            return f"examples.md#{slugify(path.removeprefix('examples/'), '-')}"
        return pages.get(path, path.removeprefix("docs/") if path.startswith("docs/") else found[1]) + (found[2] or "")

    return LINK.sub(link, markdown)


def options() -> str:
    """Every command with its options, from the parser that its command line has."""
    lines = ["# Options", "",
             "`dpt COMMAND --help` prints the same; this page is made from the commands. A size is `HEIGHTxWIDTH`, or "
             "one number for a square. The values of a plural option are separated by commas. [Exit statuses]"
             "(exit-statuses.md) are the same for every command.", ""]
    for title, rows in GROUPS.items():
        lines += [f"## {title}", ""]
        for row in rows:
            command = load(row)
            lines += [f"### dpt {row.name}", "", f"The same as `{command.prog}`.", "",
                      paragraph(command.config.__doc__ or ""), "", "| option | default | meaning |", "|---|---|---|",
                      *(f"| {' | '.join(cells)} |" for cells in option_rows(command.config)), ""]
    return "\n".join(lines)


def option_rows(config: type) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each option, as Markdown for the cells of a table."""
    import tyro

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there is no other way to tyro's help texts
        parser = tyro.extras.get_parser(config, config=MARKERS, registry=REGISTRY)
    for action in parser._actions:
        if "--help" in action.option_strings:
            continue
        meaning, _, default = (action.help or "").strip().partition("(default: ")
        metavar = "" if action.option_strings and action.nargs == 0 else action.metavar or ""
        if action.option_strings:
            name = ", ".join(f"`{option}{metavar and ' '}{metavar}`" for option in action.option_strings)
        else:
            name = f"`{metavar}`"
        default = default.rstrip().removesuffix(")")
        if meaning.rstrip().endswith("(required)"):
            meaning, default = meaning.rstrip().removesuffix("(required)"), "required"
        elif default:
            default = f"`{default}`"
        yield tuple(cell.strip().replace("|", "\\|") for cell in (name, default, meaning))


def exit_statuses() -> str:
    """The statuses, from the docstring of `dpt_deploy.cli`, where they are defined."""
    statuses = re.findall(r"^ +(\d+) +(.+)$", cli.__doc__ or "", re.MULTILINE)
    rows = [f"| {status} | {meaning} |" for status, meaning in statuses]
    return "\n".join([
        "# Exit statuses", "", "They are the same in every command.", "",
        "| status | meaning |", "|---|---|", *rows, "",
        "Errors are one message on standard error: what was expected, what was received, what to run.", "",
    ])


def table_of_backends() -> str:
    """The registry of backends, in order of preference."""
    rows = [f"| `{one.name}` | {one.title} | {one.device.upper()} | {one.runs} | "
            f"{f'`{one.extra}`' if one.extra else '`make cpp`'} | {'yes' if one.automatic else 'no'} |"
            for one in backends.registered()]
    return "\n".join([
        "# Table of backends", "",
        "In order of preference: `dpt_deploy.load` takes the first that can run the bundle here, if it is marked as "
        "automatic; any other is taken by name. Among CPU backends it takes the "
        "[fastest as measured](python.md#which-backend-runs). "
        "This page is made from the registry, `dpt_deploy.backends`. "
        "[Contributing](contributing.md#adding-a-backend) says how to add one.", "",
        "| name | | computes on | runs | installed by | automatic |", "|---|---|---|---|---|---|", *rows, "",
        "What has been verified on which hardware is on the [start page](index.md).", "",
    ])


def examples() -> str:
    """The Python examples, each with the docstring that says what it shows, and where those in C and C++ are."""
    lines = ["# Examples", "", "Complete scripts from the folder `examples/`. Those in C and C++ are described in "
             "[Running in C++ and C](cpp.md).", ""]
    for path in sorted((ROOT / "examples").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(source)) or ""
        code = source.split('"""', 2)[2].strip()
        name = path.relative_to(ROOT / "examples").as_posix()
        lines += [f"## {name}", "", docstring, "", f"```python\n{code}\n```", ""]
    return "\n".join(lines)


MADE = {
    "options.md": options, "exit-statuses.md": exit_statuses, "backends.md": table_of_backends,
    "examples.md": examples,
}
