"""The page that a verdict comes with: complete, self-contained, and readable on a phone."""

from __future__ import annotations

import html.parser
import shutil
import subprocess

import numpy as np
import pytest

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.parity import ParityReport, Stage, compare, load_budget
from dpt_deploy.parity.compare import not_run
from dpt_deploy.parity.judge import Gallery, _fits
from dpt_deploy.parity.reference import Reference
from dpt_deploy.report.html import definitions, render
from dpt_deploy.report.plots import number
from tests.parity.conftest import random_case

BUDGET, _ = load_budget(None)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(tmp_path):
    """A failed report with all kinds of stages and an engine; its HTML."""
    reference = Reference((random_case("one", size=(48, 64)), random_case("<two>", seed=1, size=(48, 64))))
    answers = {c.frame.tobytes(): c.maps["frame"] for c in reference.cases}
    gallery = Gallery()

    def judged(name, precision, error, spoil=False):
        def run(batch):
            maps = {key: np.stack([answers[frame.tobytes()][key] for frame in batch]) for key in BUDGET["fp32"]}
            maps["depth"] = maps["depth"] * np.float32(1 + error)
            maps["alpha"] = maps["alpha"] + np.float32(error)
            if spoil:
                maps["normals"][1, :9] = np.nan
            return maps
        return compare(name, run, reference, "frame", precision, BUDGET, show=gallery)

    stages = (
        Stage("weights frame fp16", "passed", "fp16", reasons=("all 9 tensors",)),
        judged("ONNX Runtime frame fp32", "fp32", 1e-6), judged("ONNX Runtime frame fp16", "fp16", 3e-4),
        judged("tensorrt frame fp16", "fp16", 0.02, spoil=True), not_run("C++ runtime frame fp32", "fp32", "not built"),
    )
    contract = {"input_size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "resize": "stretch",
                "heads": ["depth", "normals", "alpha"]}
    header = {"name": "a bundle", "contract": contract, "versions": {"torch": "2"}, "command": "export <x>",
              "checkpoint": {"file": "best.pth", "sha256": "c0ffee" * 10}, "created": "2026-01-01T10:00:00+00:00"}
    bundle = Bundle.create(tmp_path / "bundle", header)
    bundle.folder.mkdir()
    for file in ("frame.fp16.onnx", "frame.engine"):
        (bundle.folder / file).write_bytes(file.encode())
    graph = bundle.add("frame.fp16.onnx", "onnx", graph="frame", precision="fp16")
    certificate = {"status": "passed", "fused_attention": {"found": 12, "expected": 12}, "islands": ["a", "b"],
                   "layers": [{"name": "x" * 90, "half": True}], "memory": None, "share": 0.98765}
    bundle.add("frame.engine", "engine", graph="frame", precision="fp16",
               details={"made_from": graph.sha256, "certificate": certificate})
    report = ParityReport(stages, BUDGET, "default", ("one", "<two>"))
    return render(report, bundle, gallery.worst, "judge & command"), report, bundle


class Links(html.parser.HTMLParser):
    """What a browser would fetch, and tags that are not closed."""

    def __init__(self):
        super().__init__()
        self.fetched, self.open = [], []

    def handle_starttag(self, tag, attrs):
        self.fetched += [value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")]
        if tag == "script":
            self.fetched.append("script")
        if tag not in ("meta", "img", "br", "line", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_fetches_nothing_and_is_well_formed(page):
    text, _, _ = page
    links = Links()
    links.feed(text.replace("/>", ">"))
    assert links.fetched == [] and links.open == [] and "url(" not in text and "@import" not in text
    assert len(text) < 2_000_000


def test_the_page_says_everything(page):
    text, report, bundle = page
    start = text.index("FAILED")
    assert start < text.index("<h2>")  # verdict first
    for sentence in report.blame:
        assert sentence in text
    for stage in report.stages:
        assert text.count(stage.name) >= 1
    assert "judge &amp; command" in text and "export &lt;x&gt;" in text
    assert "&lt;two&gt;" in text and "<two>" not in text
    hashes = [bundle.header["checkpoint"]["sha256"], *(a.sha256 for a in bundle.artifacts)]
    assert [text.index(digest, text.index("Chain of files")) for digest in hashes] == sorted(
        text.index(digest, text.index("Chain of files")) for digest in hashes)
    assert text.count("<svg") == 3 and text.count("FP16 budget") >= 3
    assert "magenta is NaN or Inf" in text and "Normals: &lt;two&gt; in tensorrt frame fp16, not finite" in text
    assert text.count('class="maps"') == 3 and text.count("data:image/") == 12
    assert text.count("no valid answer on an input") == 1
    assert "fused attention" in text and "0.988" in text and "not built" in text


def test_any_json_becomes_definitions():
    value = {"a_b": [1, 2], "c": {"d": None, "e": True}, "f": [{"g": "<"}], "h": [], "i": {}}
    assert definitions(value) == (
        "<dl><dt>a b</dt><dd>1, 2</dd><dt>c</dt><dd>d not known; e yes</dd>"
        "<dt>f</dt><dd><ul><li><dl><dt>g</dt><dd>&lt;</dd></dl></li></ul></dd><dt>h</dt><dd>none</dd><dt>i</dt>"
        "<dd>none</dd></dl>"
    )
    assert "<th>k</th><th>l m</th>" in definitions([{"k": 1000000, "l_m": [1, 2]}])
    assert "<td>1,000,000</td><td>1, 2</td>" in definitions([{"k": 1000000, "l_m": [1, 2]}])


def test_numbers_read_well():
    assert [number(x) for x in (0.0, 0.057123, 6.84e-4, 1e-7, 12.0, float("nan"), float("inf"))] == [
        "0", "0.0571", "6.8e-4", "1e-7", "12", "NaN", "infinite"]


def test_an_engine_is_judged_on_what_its_profile_takes():
    profile = {"min": [1, 64, 64, 3], "max": [8, 480, 640, 3]}
    assert _fits((480, 640, 3), profile) and not _fits((481, 640, 3), profile) and not _fits((32, 512, 3), profile)
    assert _fits((32, 512, 3), {})


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_the_window(page, tmp_path, width):
    (tmp_path / "report.html").write_text(page[0])
    (tmp_path / "frame.html").write_text(
        f'<iframe id="f" src="report.html" style="border:0;width:{width}px;height:900px"></iframe><script>'
        "f.onload = () => { document.title = 'wide ' + f.contentDocument.documentElement.scrollWidth }</script>"
    )
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
         "--allow-file-access-from-files", "--hide-scrollbars", "--virtual-time-budget=5000", "--dump-dom",
         f"file://{tmp_path / 'frame.html'}"], capture_output=True, text=True, check=True, timeout=120,
    )
    assert f"<title>wide {width}</title>" in done.stdout
