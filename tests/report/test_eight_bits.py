"""What the page, the model card and the terminal say about stages in eight bits."""

from __future__ import annotations

import dataclasses
import math

import pytest

from dpt_deploy.core.budget import held_to
from dpt_deploy.core.errors import Cause
from dpt_deploy.core.task import TASK, TaskChange, TaskVerdict
from dpt_deploy.core.verdict import Fault, Finding, Stage, StageId, StageKind, not_run
from dpt_deploy.parity.compare import load_budget
from dpt_deploy.report import print_outcome
from dpt_deploy.report.formatting import TASK_TITLES, judged_by, task_rows
from dpt_deploy.report.html import render_html, stage_metrics, stage_share
from dpt_deploy.report.model_card import render_model_card

BUDGET, _ = load_budget(None)
DATA = "held [b] <i>|x"
FAR = {"depth": {"abs_rel": 0.2}, "normals": {"mean": 20.0}, "alpha": {"mean": 0.3, "iou": 0.5}}


def task(high=0.001, **fields):
    """A verdict on every metric, whose depth may be worse by `high`."""
    changes = (
        TaskChange("depth", "abs_rel", 0.20590, 0.20620, 0.0003, -0.0014, high, 0.005, 64),
        TaskChange("normals", "mean", 24.714, 24.758, 0.044, 0.027, 0.061, 0.25, 64),
        TaskChange("alpha", "iou", 0.8613, 0.8611, 0.00021, -0.00019, 0.0006, 0.005, 64),
        TaskChange("alpha", "mae", 0.04454, 0.04471, 0.00017, 6.5e-5, 0.00027, None, 64),
    )
    return TaskVerdict(64, DATA, 2000, changes, **({"seen": 12, "against": "OpenVINO frame fp32"} | fields))


def stage(title, graph="frame", **fields):
    """A stage that is far from FP32, held to the budget."""
    kind = StageKind.GRAPH if graph == "model" else StageKind.BACKEND
    return held_to(Stage(StageId(kind, graph, "int8", "openvino", title=title), "passed", heads=FAR, **fields), BUDGET)


@pytest.fixture
def eight(judged):
    """The judged bundle with stages in eight bits: two by the task, one by its frame graph, one by distance."""
    stages = (stage("model <int8>", "model", frame_decides=True), stage("good int8", task=task()),
              stage("bad int8", task=task(0.02), earlier=True), stage("far int8"),
              not_run(StageId(StageKind.BACKEND, "frame", "fp8", title="engine fp8"), Cause.NO_GPU, "no GPU"))
    return judged._replace(report=dataclasses.replace(judged.report, stages=(*judged.report.stages, *stages)))


def test_a_row_has_both_values_the_change_with_its_interval_and_the_margin():
    rows = task_rows(stage("x", task=task(0.02)))
    assert rows[0] == ("Depth AbsRel", "0.2059", "0.2062", "+0.0003 (-0.0014 to +0.02)", "0.005", "failed")
    assert rows[1].metric == "Normals mean [deg]" and [row.verdict for row in rows[1:]] == ["passed"] * 3
    without_margin = task_rows(dataclasses.replace(stage("x"), task=task()))[3]
    assert (without_margin.margin, without_margin.verdict) == ("none", "shown only")
    (nan,) = task_rows(stage("x", task=dataclasses.replace(task(), changes=(
        TaskChange("depth", "abs_rel", 0.1, math.nan, math.nan, math.nan, math.nan, 0.005),))))
    assert nan.verdict == "failed" and "nan" in nan.change
    assert task_rows(stage("x")) == []


def test_every_metric_of_the_task_has_a_title():
    assert {head: tuple(titles) for head, titles in TASK_TITLES.items()} == TASK


def test_it_is_said_what_decides():
    fp32 = Stage(StageId(StageKind.GRAPH, "frame", "fp32"), "passed")
    weights = Stage(StageId(StageKind.WEIGHTS, "frame", "int8"), "passed")
    assert [judged_by(one) for one in (stage("x", task=task()), stage("x", "model", frame_decides=True), stage("x"),
                                       fp32, weights)] == [
        "judged by the loss of the task", "judged by the task of the frame graph", "judged by distance alone", "", ""]


def test_the_page_has_a_table_for_each_stage_judged_by_the_task(eight):
    page = render_html(*eight)
    section = page[page.index("Eight bits: the loss of the task"):page.index("<h2>Error distribution")
                   if "<h2>Error distribution" in page else None]
    assert section.count("<table>") == 2 and section.count("<td>Depth AbsRel</td>") == 2
    assert section.count('<td class="failed">failed</td>') == 1 and "+0.0003 (-0.0014 to +0.02)" in section
    assert section.count("64 images of held [b] &lt;i&gt;|x, at most 12 of them used in training, "
                         "against OpenVINO frame fp32, 2000 resamples") == 2
    assert section.count("judged earlier") == 1
    for words in ("model &lt;int8&gt; <span", "judged by the task of the frame graph", "judged by distance alone"):
        assert words in section
    assert "<i>|x" not in page and "engine fp8" not in section
    assert ("depth abs_rel against truth may be worse by 0.02 (95 % interval; 0.0003 on average over 64 images), "
            "margin 0.005") in page


def test_without_eight_bits_nothing_is_said_of_them(judged, capsys):
    print_outcome(judged.bundle, judged.report, [])
    for text in (render_html(*judged), render_model_card(judged.bundle, judged.report), capsys.readouterr().out):
        assert "ight bits" not in text and "loss of the task" not in text


def test_distances_that_do_not_decide_are_shown_without_a_budget():
    limits = BUDGET["int8"]
    shown = stage_metrics(stage("x", task=task()), "depth", limits)
    assert [(metric.value, metric.bound, metric.within) for metric in shown] == [("0.2", None, True)]
    assert not stage_metrics(stage("x"), "depth", limits)[0].within


def test_a_loss_beyond_its_margin_is_no_invalid_map(eight):
    bad = eight.report.stages[-3]
    assert [finding.fault for finding in bad.findings] == [Fault.OVER_MARGIN]
    assert math.isfinite(stage_share(bad, "depth", eight.report))
    assert "no valid answer" not in render_html(eight.bundle, dataclasses.replace(eight.report, stages=(bad,)), {})
    broken = dataclasses.replace(bad, findings=(Finding(Fault.NOT_FINITE, "depth", image="a", name="depth"),))
    assert "no valid answer" in render_html(eight.bundle, dataclasses.replace(eight.report, stages=(broken,)), {})


def test_the_model_card_has_the_tables_too(eight):
    card = render_model_card(eight.bundle, eight.report)
    assert "| Depth AbsRel | 0.2059 | 0.2062 | +0.0003 (-0.0014 to +0.02) | 0.005 | failed |" in card
    assert card.count("| metric | FP32 | eight bits |") == 2 and "64 images of held \\[b\\] &lt;i&gt;\\|x" in card
    assert "- good int8: passed, judged by the loss of the task\n" in card
    assert "- far int8: failed, judged by distance alone\n" in card
    lines = card.splitlines()
    for row in [i for i, line in enumerate(lines) if line.startswith("| metric |")]:
        assert lines[row - 1] == "" and lines[row + 1].count("---") == 6 and lines[row + 2].count(" | ") == 5


def test_the_terminal_prints_names_as_they_are(eight, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    print_outcome(eight.bundle, eight.report, [])
    out = capsys.readouterr().out
    assert out.count("Depth AbsRel") == 2 and DATA in out and "+0.0003 (-0.0014 to +0.02)" in out
    assert "far int8: judged by distance alone\n" in out and "A positive change is worse." in out
