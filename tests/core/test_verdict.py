"""Blame, budgets held again, and reports of earlier versions."""

from __future__ import annotations

import json
import math

import pytest

from dpt_deploy.core.verdict import held_to, over_budget, share_of_budget
from dpt_deploy.parity import ParityReport, Stage, load_budget

BUDGET, _ = load_budget(None)
LINE = ["weights frame fp16", "PyTorch fp16", "ONNX Runtime model fp32", "ONNX Runtime model fp16",
        "ONNX Runtime frame fp32", "ONNX Runtime frame fp16", "Runtime, NumPy pre- and post-processing",
        "C++ runtime frame fp32", "tensorrt-rtx model fp16", "tensorrt-rtx frame fp16"]


def report(failed=(), absent=()):
    stages = [
        Stage(name, "failed" if name in failed else "not run" if name in absent else "passed",
              "fp16" if name.endswith("fp16") else "fp32") for name in LINE
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


def test_what_did_not_run_is_not_blamed_nor_a_source():
    judged = report(["tensorrt-rtx frame fp16"], ["ONNX Runtime frame fp16"])
    assert judged.blame == ("the error enters between PyTorch fp16 and tensorrt-rtx frame fp16",)


def test_a_report_of_an_earlier_version_is_read():
    value = report(["PyTorch fp16"]).to_json()
    for stage in value["stages"]:
        del stage["quantiles"]
    del value["reference"], value["blame"]
    again = ParityReport.from_json(json.loads(json.dumps(value)))
    assert again == report(["PyTorch fp16"])


def test_reasons_find_their_head():
    stage = Stage("x", "failed", "fp16", reasons=(
        "depth abs_rel 1, budget 2, worst image a", "a: normals is NaN or Inf in 1% of its values",
        "b: alpha_logits has shape [1], expected [2]", "c: no output depth", "a batch of 2 of d raised ValueError: e",
    ))
    assert stage.reasons_of("depth") == [stage.reasons[0], *stage.reasons[3:]]
    assert stage.reasons_of("normals") == [stage.reasons[1], stage.reasons[4]]
    assert stage.reasons_of("alpha") == [stage.reasons[2], stage.reasons[4]]
    weights = Stage("x", "failed", "fp16", reasons=("heads.depth.conv3.weight differs by 1 % of its largest weight",))
    assert weights.reasons_of("weights") == list(weights.reasons)


def test_a_fault_stays_a_fault_under_any_budget():
    heads, worst = {"depth": {"abs_rel": 2e-3, "p99.9": 1e-3}}, {"depth": "a"}
    limits = over_budget(heads, worst, BUDGET["fp16"])
    loose = {"fp32": {}, "fp16": {"depth": {"abs_rel": 1.0}}}
    only_over = Stage("x", "failed", "fp16", heads=heads, worst=worst, reasons=tuple(limits))
    assert held_to(only_over, BUDGET, loose)
    assert held_to(held_to(only_over, BUDGET, loose), loose, BUDGET) == only_over
    fault = "a: normals is NaN or Inf in 1% of its values"
    both = Stage("x", "failed", "fp16", heads=heads, worst=worst, reasons=(*limits, fault))
    assert held_to(both, BUDGET, loose).reasons == (fault,)


def test_share_of_budget():
    assert share_of_budget("abs_rel", 5e-4, 1e-3) == pytest.approx(0.5)
    assert share_of_budget("iou", 0.9995, 0.999) == pytest.approx(0.5)
    assert share_of_budget("abs_rel", math.nan, 1e-3) == math.inf
    assert share_of_budget("max", 0.0, 0.0) == 0 and share_of_budget("max", 1e-9, 0.0) == math.inf
