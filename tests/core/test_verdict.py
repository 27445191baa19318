"""Blame, findings, budgets held again, and a report's way through JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from dpt_deploy.core.budget import held_to, over_budget, share_of_budget
from dpt_deploy.core.errors import Cause
from dpt_deploy.core.verdict import (
    Fault,
    Finding,
    ParityReport,
    Stage,
    StageId,
    StageKind,
    in_order,
    not_run,
)
from dpt_deploy.parity import load_budget

BUDGET, _ = load_budget(None)
CPU, RTX = "onnxruntime-cpu", "tensorrt-rtx"
LINE = (
    StageId(StageKind.WEIGHTS, "frame", "fp16", title="weights frame fp16"),
    StageId(StageKind.PYTORCH, "model", "fp16", title="PyTorch fp16"),
    StageId(StageKind.GRAPH, "model", "fp32", CPU, title="ONNX Runtime model fp32"),
    StageId(StageKind.GRAPH, "model", "fp16", CPU, title="ONNX Runtime model fp16"),
    StageId(StageKind.GRAPH, "frame", "fp32", CPU, title="ONNX Runtime frame fp32"),
    StageId(StageKind.GRAPH, "frame", "fp16", CPU, title="ONNX Runtime frame fp16"),
    StageId(StageKind.STEPS, "frame", "fp32", CPU, title="Runtime, NumPy pre- and post-processing"),
    StageId(StageKind.BACKEND, "frame", "fp32", "cpp", title="C++ runtime frame fp32"),
    StageId(StageKind.BACKEND, "model", "fp16", RTX, "gpu", title="tensorrt-rtx model fp16"),
    StageId(StageKind.BACKEND, "frame", "fp16", RTX, "gpu", title="tensorrt-rtx frame fp16"),
)
NAN = Finding(Fault.NOT_FINITE, "normals", value=0.01, image="a", name="normals")


def report(failed=(), absent=()):
    """A report on `LINE` in which the stages called `failed` failed, and those called `absent` were not run."""
    stages = [
        not_run(stage, Cause.NO_GPU, "no GPU") if str(stage) in absent else
        Stage(stage, "failed", findings=(NAN,)) if str(stage) in failed else Stage(stage, "passed")
        for stage in LINE
    ]
    return ParityReport(tuple(stages), BUDGET, "default", ())


@pytest.mark.parametrize(
    ("failed", "blame"),
    [
        (["tensorrt-rtx frame fp16"], "ONNX Runtime frame fp16 and tensorrt-rtx frame fp16"),
        (["PyTorch fp16", "tensorrt-rtx model fp16", "tensorrt-rtx frame fp16"], "PyTorch FP32 and PyTorch fp16"),
        (["ONNX Runtime frame fp32", "ONNX Runtime frame fp16", "C++ runtime frame fp32", "tensorrt-rtx frame fp16"],
         "ONNX Runtime model fp32 and ONNX Runtime frame fp32"),
        (["weights frame fp16", "ONNX Runtime frame fp16"], "the checkpoint and weights frame fp16"),
        (["C++ runtime frame fp32"], "ONNX Runtime frame fp32 and C++ runtime frame fp32"),
        (["Runtime, NumPy pre- and post-processing"],
         "ONNX Runtime model fp32 and Runtime, NumPy pre- and post-processing"),
    ],
)
def test_the_verdict_names_where_the_error_enters(failed, blame):
    judged = report(failed)
    assert judged.blame == (f"the error enters between {blame}",)
    assert judged.blame[0] in judged.verdict and f"{len(failed)} of {len(LINE)} stages" in judged.verdict


def test_two_errors_have_two_places():
    assert len(report(["PyTorch fp16", "C++ runtime frame fp32"]).blame) == 2


def test_a_stage_that_did_not_run_is_not_blamed_nor_a_source():
    judged = report(["tensorrt-rtx frame fp16"], ["ONNX Runtime frame fp16"])
    assert judged.blame == ("the error enters between PyTorch fp16 and tensorrt-rtx frame fp16",)


def test_blame_follows_the_identity_and_not_the_title():
    judged = report(["tensorrt-rtx frame fp16"])
    renamed = [dataclasses.replace(stage, id=dataclasses.replace(stage.id, title=f"stage {i}"))
               for i, stage in enumerate(judged.stages)]
    assert [stage.id for stage in renamed] == list(LINE)
    assert dataclasses.replace(judged, stages=tuple(renamed)).blame == ("the error enters between stage 5 and stage 9",)


def test_stages_stand_from_the_checkpoint_to_the_maps():
    stages = [stage for stage in report().stages if stage.id.kind is not StageKind.BACKEND]
    order = [str(stage.id) for stage in in_order(stages[::-1])]
    assert order == [
        "weights frame fp16", "PyTorch fp16", "ONNX Runtime model fp32", "ONNX Runtime model fp16",
        "ONNX Runtime frame fp32", "ONNX Runtime frame fp16", "Runtime, NumPy pre- and post-processing",
    ]


def test_a_report_survives_json_and_tells_in_it_what_it_knows():
    judged = report(["PyTorch fp16"], ["tensorrt-rtx frame fp16"])
    value = json.loads(json.dumps(judged.to_json()))
    assert ParityReport.from_json(value) == judged
    assert value["passed"] is False and value["verdict"] == judged.verdict and value["blame"] == list(judged.blame)
    entry = value["stages"][1]
    assert entry["name"] == "PyTorch fp16" and entry["reasons"] == ["a: normals is NaN or Inf in 1.0% of its values"]
    assert value["stages"][9]["cause"] == "no GPU"


def test_a_metric_that_is_not_finite_is_null_in_json_and_never_passes():
    stage = Stage(LINE[5], "failed", heads={"depth": {"abs_rel": math.nan}},
                  findings=tuple(over_budget({"depth": {"abs_rel": math.nan}}, {}, {"depth": {"abs_rel": 1.0}})))
    value = ParityReport((stage,), BUDGET, "default", ()).to_json()
    assert value["stages"][0]["heads"]["depth"]["abs_rel"] is None and "NaN" not in json.dumps(value)
    (again,) = ParityReport.from_json(value).stages
    assert math.isnan(again.heads["depth"]["abs_rel"]) and math.isnan(again.findings[0].value)
    assert not held_to(again, {"fp16": {"depth": {"abs_rel": 1e9}}}).passed


@pytest.mark.parametrize("value", [None, [], {}, {"stages": 1}, {"stages": [1]}, {"stages": [{}]}, {"stages": ["id"]},
                                   {"stages": [{"name": 1, "reasons": [], "precision": "fp16"}]},
                                   {"stages": [{"id": {"kind": "weights"}}]}, {"stages": []}])
def test_json_that_is_not_a_report_is_a_value_error(value):
    with pytest.raises(ValueError):
        ParityReport.from_json(value)


def test_a_stage_of_a_precision_that_no_budget_knows_is_refused():
    value = report().to_json()
    value["stages"][0]["id"]["precision"] = "int4"
    with pytest.raises(ValueError):
        ParityReport.from_json(value)


def test_a_stage_and_a_report_have_no_truth_value():
    for judged in (report(), report().stages[0]):
        assert judged.passed is True
        with pytest.raises(TypeError, match=r"use \.passed"):
            bool(judged)


def test_findings_know_their_head():
    findings = (
        Finding(Fault.OVER_BUDGET, "depth", "abs_rel", 1.0, 2.0, "a"), NAN,
        Finding(Fault.WRONG_SHAPE, "alpha", image="b", name="alpha_logits", detail="[1], expected [2]"),
        Finding(Fault.NO_OUTPUT, "depth", image="c", name="depth"),
        Finding(Fault.RAISED, detail="a batch of 2 of d raised ValueError: e"),
    )
    stage = Stage(LINE[5], "failed", findings=findings)
    assert stage.findings_of("depth") == [findings[0], findings[3], findings[4]]
    assert stage.findings_of("normals") == [findings[1], findings[4]]
    assert stage.findings_of("alpha") == [findings[2], findings[4]]
    assert stage.reasons == (
        "depth abs_rel 1, budget 2, worst image a", "a: normals is NaN or Inf in 1.0% of its values",
        "b: alpha_logits has shape [1], expected [2]", "c: no output depth", "a batch of 2 of d raised ValueError: e",
    )
    weights = Finding(Fault.TENSOR_DIFFERS, name="heads.depth.conv3.weight", value=0.01)
    assert str(weights) == "heads.depth.conv3.weight differs by 1.00% of its largest weight"
    assert Stage(LINE[0], "failed", findings=(weights,)).findings_of("weights") == [weights]


def test_a_fault_stays_a_fault_under_any_budget():
    heads, worst = {"depth": {"abs_rel": 2e-3, "p99.9": 1e-3}}, {"depth": "a"}
    limits = tuple(over_budget(heads, worst, BUDGET["fp16"]))
    loose = {"fp32": {}, "fp16": {"depth": {"abs_rel": 1.0}}}
    only_over = Stage(LINE[5], "failed", heads=heads, worst=worst, findings=limits)
    assert limits and held_to(only_over, loose).passed
    assert held_to(held_to(only_over, loose), BUDGET) == only_over
    both = Stage(LINE[5], "failed", heads=heads, worst=worst, findings=(*limits, NAN))
    assert held_to(both, loose).findings == (NAN,)


def test_share_of_budget():
    assert share_of_budget("abs_rel", 5e-4, 1e-3) == pytest.approx(0.5)
    assert share_of_budget("iou", 0.9995, 0.999) == pytest.approx(0.5)
    assert share_of_budget("abs_rel", math.nan, 1e-3) == math.inf
    assert share_of_budget("max", 0.0, 0.0) == 0 and share_of_budget("max", 1e-9, 0.0) == math.inf
