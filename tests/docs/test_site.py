"""The documentation builds without a network and without a broken link, and its made pages say what the code says."""

from __future__ import annotations

import html.parser
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import dpt_deploy
from dpt_deploy import backends
from dpt_deploy.cli.commands import ROWS, load
from tests.docs.conftest import ROOT

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Links(html.parser.HTMLParser):
    """The anchors and links of a page, and what a browser would load for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.ids |= {value for name in ("id", "name") if (value := values.get(name))}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if values.get(LOADED.get(tag, "")):
            self.loaded.append(values[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    variables = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_every_link_and_anchor_exists_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= 16
    wrong = []
    for path, page in pages.items():
        wrong += [f"{path.name} loads {url}" for url in page.loaded if re.match(r"(https?:)?//", url)]
        for link in [*page.links, *page.loaded]:
            target, anchor = urldefrag(link)
            if re.match(r"(https?:)?//|mailto:|data:", link):
                continue
            file = (path.parent / unquote(target)).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (anchor and file in pages and unquote(anchor) not in pages[file].ids):
                wrong.append(f"{path.name}: {link}")
    assert not wrong


def test_nothing_of_the_project_is_left_out(site: Path) -> None:
    reference = Links(site / "api.html").ids
    public = [name for name in dpt_deploy.__all__ if not name.startswith("_")]
    homes = {name: getattr(getattr(dpt_deploy, name), "__module__", "") for name in public}
    assert not [name for name, home in homes.items() if not {f"dpt_deploy.{name}", f"{home}.{name}"} & reference]
    options, table = text_of(site / "options.html"), text_of(site / "backends.html")
    assert not [name for name in ROWS if f"dpt {name}" not in options]
    assert not [name for name in backends.names() if name not in table]
    assert "--frame-size-range HxW,HxW" in options
    statuses = text_of(site / "exit-statuses.html")
    assert re.search(r"130\s+interrupted", statuses) and re.search(r"\b1\s+done, but the verdict failed", statuses)


def test_the_changelog_names_every_renamed_option() -> None:
    table = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = [row for row in table.splitlines() if row.strip().startswith("| `")]
    missing = []
    for name in ROWS:
        for old, new in load(ROWS[name]).renamed.items():
            fitting = [row for row in rows if f"`{name}`" in row and f"`{old}`" in row]
            if not any(not new.startswith("-") or f"`{new.split()[0]}`" in row for row in fitting):
                missing.append(f"{name}: {old} -> {new}")
    assert not missing


def test_the_names_in_contributing_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    spans = set(re.findall(r"`([^`\n]+)`", text.replace("\n", " ")))
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "dpt_deploy").rglob("*.py"))
    names = {name for name in spans if re.fullmatch(r"[a-z]+(_[a-z]+)+|_[a-z]+|[A-Z]+(_[A-Z]+)*|[A-Z][a-z]+", name)}
    assert len(names) > 10
    assert not {name for name in names - {"Makefile"} if not re.search(rf"\b{name}\b", code)}
    paths = {name for name in spans if re.fullmatch(r"[\w./]+\.(py|json|md|toml|txt|yml)|[\w/]+/", name)}
    roots = [ROOT, ROOT / "dpt_deploy"]
    missing = {path for path in paths if "NAME" not in path and not any((root / path).exists() for root in roots)}
    assert not missing
