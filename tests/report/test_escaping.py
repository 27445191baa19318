"""Whatever a manifest or a report says, the page and the card show it as text: none of it becomes markup."""

from __future__ import annotations

import dataclasses
import html.parser

import markdown_it
import pytest

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.files import write_json
from dpt_deploy.core.manifest import Manifest
from dpt_deploy.core.verdict import ParityReport
from dpt_deploy.report.html import render_html
from dpt_deploy.report.model_card import HAND_WRITTEN_MARKER, LATENCY_FILE, render_model_card

POISON = """<script>]]>|`"'**b**_i_[l](u)<!--&lt;$m$~~s~~#"""
FIXED = {  # what the code itself writes, and refuses in any other form
    "stretch", "depth", "normals", "alpha", "fp16", "fp32", "bf16", "model", "frame", "onnx", "engine", "reference",
    "passed", "failed", "not run", "weights", "graph", "backend", "cpu", "gpu", "over budget", "raised", "abs_rel",
    "not built", "fixed", "none", "0" * 64, "1" * 64,
}
REPORT = {
    "stages": [
        {"id": {"kind": "weights", "graph": "frame", "precision": "fp16", "title": "first title", "file": "f"},
         "status": "passed", "notes": ["note", "another note"], "heads": {"other": {"x": 1.0}}},
        {"id": {"kind": "graph", "graph": "frame", "precision": "fp16", "title": "a title", "file": "f"},
         "status": "failed", "heads": {"depth": {"abs_rel": 1.0}}, "quantiles": {"depth": [0.1] * 8},
         "worst": {"depth": "image"},
         "findings": [{"fault": "over budget", "head": "depth", "metric": "metric", "value": 1.0, "bound": 0.1,
                       "image": "image"}, {"fault": "raised", "image": "image", "detail": "detail"}]},
        {"id": {"kind": "backend", "graph": "frame", "precision": "fp32", "backend": "name"},
         "status": "not run", "cause": "not built", "detail": "why not"},
    ],
    "budget": {"fp32": {"depth": {"abs_rel": 1e-5}}, "fp16": {"depth": {"abs_rel": 1e-3}}},
    "budget_file": "a budget", "inputs": ["first", "second"],
}
CERTIFICATE = {
    "status": "none", "reasons": ["reason"], "flops": {"share": 0.5, "more": "flop"}, "list": ["item"],
    "table": [{"k": "cell", "l": ["inner"]}], "nested": {"deep": {"deeper": "value"}, "few": [{"one": "x"}]},
    "attention": {"status": "passed", "layers": 1, "blocks": 2},
}


def poisoned(value):
    """`value` with `POISON` at the end of every string."""
    if isinstance(value, str):
        return value if value in FIXED else value + POISON
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    return {key: poisoned(item) for key, item in value.items()} if isinstance(value, dict) else value


@pytest.fixture
def poisoned_bundle(tmp_path):
    manifest = poisoned({
        "name": "name", "created": "created", "command": "command", "checkpoint": {"file": "file", "sha256": "0" * 64},
        "model": {"backbone": "backbone"}, "training": {"flat": "text", "list": ["a", "b"], "deep": {"x": {"y": "z"}}},
        "versions": {"package": "version"},
        "precision": {"plan": {"precision": "fp16", "fp32": ["module"]},
                      "trials": [{"name": "trial", "plan": {"precision": "fp16", "fp32": []}, "passed": False}]},
        "artifacts": [
            {"file": "graph file", "kind": "onnx", "sha256": "0" * 64, "bytes": 1, "graph": "frame"},
            {"file": "engine file", "kind": "engine", "sha256": "1" * 64, "bytes": 1, "graph": "frame",
             "details": {"builder": "builder", "builder_version": "1", "made_from": "0" * 64,
                         "certificate": CERTIFICATE}},
            {"file": "reference file", "kind": "reference", "sha256": "1" * 64, "bytes": 1},
        ],
    })
    manifest["training"][f"key{POISON}"] = "1"
    manifest["versions"][f"key{POISON}"] = "1"
    manifest["artifacts"][1]["details"]["certificate"][f"key{POISON}"] = {f"inner{POISON}": [1, [2]]}
    row = {"status": "ran", "name": f"row{POISON}", "p50_ms": 1.0, "p90_ms": 1.0, "stable": True,
           "sha256": "0" * 64}
    machine = {"gpu": {"name": f"processor{POISON}"}, "processor": None, "date": "2026-01-01"}
    write_json(tmp_path / LATENCY_FILE, {"rows": [row], "batch": f"batch{POISON}", "frame": [f"frame{POISON}"],
                                         "machine": machine})
    return Bundle(tmp_path, Manifest.model_validate(manifest | {"contract": Contract().to_json()}))


class Parsed(html.parser.HTMLParser):
    """Tags, names of attributes, comments and the text of a page, with single spaces."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.comments, self.parts = set(), set(), [], []
        self.feed(page)
        self.close()
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.parts.append(data)

    def handle_comment(self, data):
        self.comments.append(data)


def test_the_page_shows_markup_as_text(judged, poisoned_bundle):
    report = ParityReport.from_json(poisoned(REPORT))
    exhibits = {
        head: dataclasses.replace(exhibit, stage=report.stages[1].id, image=f"case{POISON}")
        for head, exhibit in judged.exhibits.items()
    }
    page = render_html(poisoned_bundle, report, exhibits, f"judged by{POISON}")
    assert "<script" not in page and "]]>" not in page
    parsed = Parsed(page)
    assert not parsed.comments
    assert parsed.tags == {
        "html", "head", "meta", "title", "style", "body", "div", "h1", "h2", "h3", "p", "strong", "section", "table",
        "thead", "tbody", "tr", "th", "td", "small", "span", "b", "i", "figure", "figcaption", "svg", "g", "path",
        "text", "ul", "li", "img", "code", "br", "dl", "dt", "dd",
    }
    assert not {name for name in parsed.attributes if name.startswith("on")} and "href" not in parsed.attributes
    for text in ("name", "created", "command", "file", "version", "key", "module", "trial", "graph file",
                 "engine file", "first title", "note", "another note", "a title", "f",
                 "detail", "image", "why not", "reason", "flop", "item", "cell", "inner", "value",
                 "judged by", "first", "second", "a budget", "case"):
        assert f"{text}{POISON}" in parsed.text, text


def test_the_card_shows_markup_as_text(poisoned_bundle):
    report = ParityReport.from_json(poisoned(REPORT))
    card = render_model_card(poisoned_bundle, report)
    assert "<script" not in card and "]]>" not in card and card.count("<!--") == 1
    rendered = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(card)
    parsed = Parsed(rendered)
    assert [f"<!--{comment}-->" for comment in parsed.comments] == [HAND_WRITTEN_MARKER]
    assert parsed.tags == {"h1", "h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "code", "ul", "li"}
    assert rendered.count("<strong>") == 2 and rendered.count("<tr>") == 4 + 4 + 2 + 8 + 4 + 2 + 2 + 1
    for text in ("name", "backbone", "file", "created", "text", "key", "z", "a title", "why not", "detail",
                 "engine file", "builder", "row", "processor", "batch", "frame", "version", "a budget"):
        assert f"{text}{POISON}" in parsed.text, text
