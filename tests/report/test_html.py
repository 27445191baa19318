"""The page that a verdict comes with: complete, self-contained, and readable on a phone."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import shutil
import subprocess

import pytest

from dpt_deploy.core.manifest import Assumption, PrecisionPlan, PrecisionRecord
from dpt_deploy.core.metrics import PARITY
from dpt_deploy.core.verdict import LEVELS, Stage, StageId, StageKind
from dpt_deploy.report.formatting import METRIC_TITLES, budget_share, number
from dpt_deploy.report.html import environment, render_html
from dpt_deploy.report.plots import quantile_plot
from tests.report.conftest import BUDGET

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def page(judged):
    return render_html(*judged, "judge & command")


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
    links = Links()
    links.feed(page.replace("/>", ">"))
    assert links.fetched == [] and links.open == [] and "url(" not in page and "@import" not in page
    assert "http://" not in page and "https://" not in page and " id=" not in page
    assert len(page) < 2_000_000


def test_a_stage_judged_earlier_that_uses_more_of_the_budget_than_the_pictures_is_named(judged):
    bundle, report, exhibits = judged
    other = dataclasses.replace(report.stages[2], earlier=True, heads={"depth": {"abs_rel": 1.0}})
    assert "not pictured" not in render_html(*judged)
    page = render_html(bundle, dataclasses.replace(report, stages=(*report.stages, other)), exhibits)
    assert page.count("not pictured") == 1 and "Depth: ONNX Runtime frame fp16, judged earlier and not pictured" in page


def test_what_was_assumed_stands_beside_the_verdict(judged):
    bundle, report, exhibits = judged
    assert "ASSUMED" not in render_html(*judged)
    bundle.update(assumed=(Assumption(fact="depth_scale", value=5.0, reason="the default", option="--depth-scale"),))
    page = render_html(bundle, report, exhibits)
    assert page.index("ASSUMED") < page.index("<h2>")
    assert "depth_scale 5.0 (the default); --depth-scale states it" in page


def test_a_sentence_lists_a_few_of_many_values():
    few, many = (Assumption(fact="fp32_modules", value=[f"m{i}" for i in range(n)], reason="searched") for n in (6, 7))
    assert str(few) == "fp32_modules m0, m1, m2, m3, m4, m5 (searched)"
    assert str(many) == "fp32_modules m0, m1, m2, m3, m4 and 2 more (searched)"


def test_pictures_of_depth_have_metres_unless_it_is_for_one_focal_length(judged):
    bundle, report, exhibits = judged
    in_metres = re.compile(r"bright [-\d.]+ m, dark [-\d.]+ m")
    assert in_metres.search(render_html(*judged))
    bundle.update(training={"canonical_focal": 500.0})
    page = render_html(bundle, report, exhibits)
    assert re.search(r"bright [-\d.]+, dark", page) and not in_metres.search(page)


@pytest.mark.parametrize(("unit", "sentence"), [
    (None, "The judge sums attention in FP16, as TensorRT&#39;s fused kernels do."),
    ("attention", "Query, key and value are cast up, so that attention sums in FP32."),
])
def test_the_page_says_how_attention_sums(judged, unit, sentence):
    plan = PrecisionPlan("fp16", (*PrecisionPlan.fp32, *([unit] if unit else [])))
    judged.bundle.update(precision=PrecisionRecord(plan=plan))
    page = render_html(*judged, "")
    assert sentence in page and ("activations, resize, attention" in page) == bool(unit)


def test_the_page_says_everything(page, judged):
    bundle, report, _ = judged
    start = page.index("FAILED")
    assert start < page.index("<h2>")  # verdict first
    for sentence in report.blame:
        assert sentence in page
    for stage in report.stages:
        assert stage.name in page
    assert "judge &amp; command" in page and "export &lt;x&gt;" in page
    assert "&lt;two&gt;" in page and "<two>" not in page
    hashes = [bundle.manifest.checkpoint.sha256, *(artifact.sha256 for artifact in bundle.artifacts)]
    assert [page.index(digest, page.index("Chain of files")) for digest in hashes] == sorted(
        page.index(digest, page.index("Chain of files")) for digest in hashes)
    assert page.count("<svg") == 3 and page.count("FP16 budget") >= 3
    assert "magenta is NaN or Inf" in page and "Normals: &lt;two&gt; in tensorrt frame fp16, not finite" in page
    assert page.count('class="maps"') == 3 and page.count("data:image/") == 12
    assert page.count("no valid answer for an input") == 1
    assert "fused attention" in page and "0.988" in page and "not built" in page


def test_every_metric_that_a_budget_may_limit_has_a_title():
    """One without would be missing from the page, with or without a limit."""
    assert {head: set(titles) for head, titles in METRIC_TITLES.items()} == {
        head: set(names) for head, names in PARITY.items()}


def test_any_json_becomes_definitions():
    definitions = environment().get_template("definitions.html.j2").module.definitions
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
    assert [budget_share(x) for x in (0.0, 0.0123, 0.34, 1.5, 12.3, float("inf"))] == [
        "0%", "1.2%", "34%", "150%", "12 times", "not finite"]


def test_a_plot_shows_lines_within_its_axes_and_is_the_same_every_time():
    def stage(name, *values):
        return Stage(StageId(StageKind.GRAPH, "frame", "fp16", title=name), "passed", quantiles={"depth": values})

    stages = [stage("a & <b>", *(10.0**-k for k in range(len(LEVELS), 0, -1))),
              stage("nothing", *[float("nan")] * len(LEVELS)), stage("exact", *[0.0] * len(LEVELS))]
    svg = quantile_plot("depth", stages, BUDGET)
    assert svg == quantile_plot("depth", stages, BUDGET)
    assert "<title>a &amp; &lt;b&gt;</title>" in svg and "<title>exact</title>" in svg and "var(--ink)" in svg
    assert not any(word in svg for word in ("xmlns", "<style", "<defs", "#010101", "nan", "inf,"))
    assert quantile_plot("alpha", stages, BUDGET) == "" and quantile_plot("depth", stages[2:], {
        "fp16": {"depth": {"abs_rel": 1.0}}, "fp32": {}}) == ""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_the_window(page, tmp_path, width):
    (tmp_path / "report.html").write_text(page)
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


def test_errors_of_depth_without_unit_are_named_as_what_they_are():
    stage = Stage(StageId(StageKind.GRAPH, "frame", "fp32", title="one"), "passed",
                  quantiles={"depth": [1e-5] * len(LEVELS)})
    assert "depth: quantiles of the error (relative error)" in quantile_plot("depth", [stage], BUDGET)
    assert "(error by the range of the map)" in quantile_plot("depth", [stage], BUDGET, metric_depth=False)
