"""The loss of the task as data: margins, NaN, JSON, and that it decides in place of the distances."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from dpt_deploy.core.budget import held_to
from dpt_deploy.core.task import TaskChange, TaskVerdict
from dpt_deploy.core.verdict import Fault, Finding, ParityReport, Stage, StageId, StageKind, stage_from_json, to_json
from dpt_deploy.parity import load_budget

BUDGET, _ = load_budget(None)
INT8 = StageId(StageKind.GRAPH, "frame", "int8", "onnxruntime-cpu", title="ONNX Runtime frame int8")
FAR = {"depth": {"abs_rel": 0.2}, "normals": {"mean": 20.0}}
FAR_FINDINGS = (Finding(Fault.OVER_BUDGET, "depth", "abs_rel", 0.2, 0.03, "a"),)


def change(high: float, margin: float | None = 0.005, head: str = "depth", metric: str = "abs_rel") -> TaskChange:
    return TaskChange(head, metric, 0.1, 0.1 + high / 2, high / 2, 0.0, high, margin, 64)


def verdict(*changes: TaskChange, seen: int | None = 0) -> TaskVerdict:
    return TaskVerdict(64, "held <out>", 2000, changes, seen, "ONNX Runtime frame fp32")


def stage(task: TaskVerdict | None = None, **fields: object) -> Stage:
    """A stage that is out of the budget of distances."""
    return Stage(INT8, "failed", heads=FAR, findings=FAR_FINDINGS, task=task, **fields)


@pytest.mark.parametrize(("high", "margin", "passed"), [
    (0.005, 0.005, True), (0.0051, 0.005, False), (-0.1, 0.005, True), (math.nan, 0.005, False),
    (math.inf, 0.005, False), (0.3, None, True), (math.nan, None, False),
])
def test_the_whole_interval_must_be_within_the_margin_and_nan_never_is(high, margin, passed):
    assert change(high, margin).passed is passed


def test_a_verdict_passes_if_something_has_a_margin_and_all_are_within():
    assert verdict(change(0.001), change(0.3, None)).passed
    assert not verdict(change(0.001), change(0.01)).passed
    assert not verdict(change(0.001, None)).passed and not verdict().passed


def test_the_loss_of_the_task_decides_in_place_of_the_distances():
    within = held_to(stage(verdict(change(0.001))), BUDGET)
    assert within.passed and within.by_task and within.heads == FAR, "distances are kept, and shown"
    over = held_to(stage(verdict(change(0.02))), BUDGET)
    assert over.status == "failed" and [(f.fault, f.head, f.value) for f in over.findings] == [
        (Fault.OVER_MARGIN, "depth", 0.02)]
    assert over.reasons == ("depth abs_rel against truth may be worse by 0.02 (95 % interval; 0.01 on average "
                            "over 64 images), margin 0.005",)
    (finding,) = held_to(stage(verdict(change(math.nan))), BUDGET).findings
    assert str(finding) == "depth abs_rel against truth is not a number"
    assert held_to(stage(), BUDGET).findings[0].fault is Fault.OVER_BUDGET, "without labels the distances decide"


def test_invalid_maps_fail_whatever_the_task_says():
    nan = Finding(Fault.NOT_FINITE, "normals", value=0.01, image="a", name="normals")
    for judged in (stage(verdict(change(0.001))), stage(frame_decides=True)):
        broken = dataclasses.replace(judged, findings=(*judged.findings, nan))
        assert held_to(broken, BUDGET).findings == (nan,) and held_to(judged, BUDGET).passed


def test_a_stage_is_held_to_the_margins_of_another_budget_and_back():
    judged = held_to(stage(verdict(change(0.02), change(0.2, 0.25, "normals", "mean"))), BUDGET)
    loose = BUDGET | {"task": {"depth": {"abs_rel": 0.5}, "normals": {"mean": 0.25}, "alpha": {"mae": 1.0}}}
    assert not judged.passed and held_to(judged, loose).passed
    assert held_to(held_to(judged, loose), BUDGET) == judged
    shown = held_to(judged, BUDGET | {"task": {"alpha": {"mae": 1.0}}})
    assert [entry.margin for entry in shown.task.changes] == [None, None]
    assert not shown.passed and "no metric has a margin" in shown.reasons[0]


def test_a_stage_with_a_task_survives_json_and_old_reports_are_still_read():
    judged = held_to(stage(verdict(change(math.nan), change(0.001, None), seen=None)), BUDGET)
    report = ParityReport((judged, Stage(dataclasses.replace(INT8, graph="model"), "passed", frame_decides=True)),
                          BUDGET, "default", ())
    value = json.loads(json.dumps(report.to_json()))
    assert value["stages"][0]["task"]["changes"][0]["high"] is None and "NaN" not in json.dumps(value)
    again = ParityReport.from_json(value)
    assert math.isnan(again.stages[0].task.changes[0].high) and again.stages[1].frame_decides
    finite = held_to(stage(verdict(change(0.001))), BUDGET)
    assert stage_from_json(to_json(finite)) == finite
    for entry in value["stages"]:
        del entry["task"], entry["frame_decides"]
    assert [stage.task for stage in ParityReport.from_json(value).stages] == [None, None]


@pytest.mark.parametrize("broken", [{"images": "64"}, {"changes": [{}]}, {"images": None}])
def test_json_that_is_no_verdict_on_the_task_is_a_value_error(broken):
    value = to_json(stage(verdict(change(0.001))))
    value["task"] |= broken
    with pytest.raises(ValueError):
        stage_from_json(value)


@pytest.mark.parametrize(("seen", "words"), [
    (0, "none of them used in training"), (12, "at most 12 of them used in training"),
    (None, "not known whether training used them"),
])
def test_a_verdict_says_what_training_has_seen(seen, words):
    assert verdict(change(0.1), seen=seen).judged_on == f"64 images of held <out>, {words}"


def test_the_summary_says_which_of_the_two_it_was():
    weights = Stage(dataclasses.replace(INT8, kind=StageKind.WEIGHTS), "passed")
    ok = Stage(StageId(StageKind.GRAPH, "frame", "fp32"), "passed")
    by_task = ParityReport((weights, ok, held_to(stage(verdict(change(0.001))), BUDGET)), BUDGET, "default", ())
    assert by_task.summary == "3 of 3 stages within budget; 1 in eight bits judged by the loss of the task"
    by_distance = ParityReport((weights, ok, stage()), BUDGET, "default", ())
    assert by_distance.summary.endswith("; 1 in eight bits judged by distance alone")
    assert "eight bits" not in ParityReport((weights, ok), BUDGET, "default", ()).summary


def test_a_graph_that_is_not_held_to_its_distances_is_no_source_of_an_error():
    model = Stage(StageId(StageKind.GRAPH, "model", "int8", title="model int8"), "passed", frame_decides=True)
    fp32 = Stage(StageId(StageKind.GRAPH, "model", "fp32", title="model fp32"), "passed")
    failed = held_to(stage(verdict(change(0.02))), BUDGET)
    assert ParityReport((model, fp32, failed), BUDGET, "default", ()).blame == (
        "the error enters between model fp32 and ONNX Runtime frame int8",)
