"""What version 0.1.0 wrote still opens: its manifest, and its reports, which named stages and faults in words."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from dpt_deploy.core.budget import held_to
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.manifest import EngineDetails, GraphDetails
from dpt_deploy.core.verdict import Fault, ParityReport, StageId, StageKind
from dpt_deploy.parity import load_budget
from dpt_deploy.parity.judge import stage_ids

WRITTEN = Path(__file__).parents[1] / "data" / "0.1.0"
"""manifest.json and parity.json of a bundle that version 0.1.0 exported, shortened."""
BUDGET, _ = load_budget(None)
CPU, RTX = "onnxruntime-cpu", "tensorrt-rtx"


def test_its_manifest_opens_and_is_written_again_without_a_loss(tmp_path):
    shutil.copy(WRITTEN / "manifest.json", tmp_path)
    bundle = Bundle.open(tmp_path)
    assert bundle.name == "demo" and bundle.contract.input_size == (128, 128)
    (graph,) = bundle.find("onnx", graph="frame", precision="fp16")
    assert isinstance(graph.details, GraphDetails) and graph.details.plan.fp32 == ("activations", "resize")
    (engine,) = bundle.find("engine", graph="frame", builder=RTX)
    assert isinstance(engine.details, EngineDetails) and engine.details.profile["frame"].max == (8, 2160, 3840, 3)
    assert engine.details.weights == "fixed" and engine.details.certificate.flops.share == pytest.approx(0.98, abs=0.01)
    assert bundle.manifest.precision.stage.id.kind is StageKind.PYTORCH and bundle.manifest.precision.stage.passed
    before = json.loads((WRITTEN / "manifest.json").read_text())
    bundle.save()
    after = json.loads((tmp_path / "manifest.json").read_text())
    assert after["precision"].pop("stage")["id"]["kind"] == "pytorch" and before["precision"].pop("stage")
    assert after == before


def test_its_report_is_read_with_the_identities_of_now(tmp_path):
    for file in WRITTEN.iterdir():
        shutil.copy(file, tmp_path)
    report = Bundle.open(tmp_path).last_report()
    assert report.passed and report.verdict == json.loads((WRITTEN / "parity.json").read_text())["verdict"]
    assert [stage.id for stage in report.stages] == [
        StageId(StageKind.WEIGHTS, "model", "fp32", file="model.fp32.onnx"),
        StageId(StageKind.WEIGHTS, "frame", "fp32", file="frame.fp32.onnx"),
        StageId(StageKind.WEIGHTS, "model", "fp16", file="model.fp16.onnx"),
        StageId(StageKind.WEIGHTS, "frame", "fp16", file="frame.fp16.onnx"),
        StageId(StageKind.PYTORCH, "model", "fp16", file="model.fp16.onnx"),
        StageId(StageKind.GRAPH, "model", "fp32", CPU, file="model.fp32.onnx"),
        StageId(StageKind.GRAPH, "model", "fp16", CPU, file="model.fp16.onnx"),
        StageId(StageKind.GRAPH, "frame", "fp32", CPU, file="frame.fp32.onnx"),
        StageId(StageKind.GRAPH, "frame", "fp16", CPU, file="frame.fp16.onnx"),
        StageId(StageKind.STEPS, "frame", "fp32", CPU, file="model.fp32.onnx"),
        StageId(StageKind.BACKEND, "frame", "fp32", "cpp", file="frame.fp32.onnx"),
        StageId(StageKind.BACKEND, "frame", "fp32", "openvino", file="frame.fp32.onnx"),
        StageId(StageKind.BACKEND, "frame", "fp16", "openvino", file="frame.fp16.onnx"),
        StageId(StageKind.BACKEND, "model", "fp16", RTX, "gpu", "model.fp16.rtx1.7.engine"),
        StageId(StageKind.BACKEND, "frame", "fp16", RTX, "gpu", "frame.fp16.rtx1.7.engine"),
    ]
    titles = [stage["name"] for stage in json.loads((WRITTEN / "parity.json").read_text())["stages"]]
    assert [stage.name for stage in report.stages] == titles
    assert "C++ runtime is not built" in report.not_run[0].detail
    assert report.stages[6].notes[0].startswith("graph, weights and names are checked")
    assert ParityReport.from_json(report.to_json()) == report


def test_the_stages_of_now_have_the_identities_that_it_gave(tmp_path):
    """Otherwise the verdicts of PyTorch and of a GPU would be lost by the first judgement with this version."""
    for file in WRITTEN.iterdir():
        shutil.copy(file, tmp_path)
    bundle = Bundle.open(tmp_path)
    last = bundle.last_report()
    assert set(stage_ids(bundle)) >= {stage.id for stage in last.stages if stage.id.backend != "openvino"}


def report_with(**changes):
    """The report with a change of its stage "PyTorch fp16"."""
    value = json.loads((WRITTEN / "parity.json").read_text())
    (stage,) = [stage for stage in value["stages"] if stage["name"] == "PyTorch fp16"]
    stage |= changes
    return ParityReport.from_json(value)


def pytorch(report):
    (stage,) = [stage for stage in report.stages if stage.id.kind is StageKind.PYTORCH]
    return stage


def test_why_a_stage_failed_keeps_its_words_and_finds_its_head():
    reasons = [
        "depth abs_rel 0.0021, budget 0.001, worst image photo: normals has been.png",
        "photo: normals has been.png: depth is NaN or Inf in 1.0% of its values", "b: no output alpha_logits",
        "b: normals has shape [1], expected [2]", "a batch of 2 of d raised ValueError: depth",
    ]
    stage = pytorch(report_with(status="failed", reasons=reasons))
    assert list(stage.reasons) == reasons
    assert [finding.head for finding in stage.findings] == ["depth", "depth", "alpha", "normals", None]
    assert [finding.fault for finding in stage.findings] == [Fault.OVER_BUDGET, *[Fault.RAISED] * 4]
    assert stage.findings[0].image == "photo: normals has been.png"


def test_a_stage_that_was_out_of_budget_is_held_to_another_one():
    heads = {"depth": {"abs_rel": None}}
    reasons = ["depth abs_rel nan, budget 0.001, worst image a"]
    stage = pytorch(report_with(status="failed", heads=heads, worst={"depth": "a"}, reasons=reasons))
    assert math.isnan(stage.heads["depth"]["abs_rel"]) and not held_to(stage, BUDGET).passed
    heads["depth"]["abs_rel"], reasons = 2e-3, ["depth abs_rel 0.002, budget 0.001, worst image a"]
    stage = pytorch(report_with(status="failed", heads=heads, worst={"depth": "a"}, reasons=reasons))
    assert not held_to(stage, BUDGET).passed
    assert held_to(stage, BUDGET | {"fp16": {"depth": {"abs_rel": 1e-2}}}).passed


def test_a_report_before_0_1_0_lacks_some_keys():
    value = json.loads((WRITTEN / "parity.json").read_text())
    whole = ParityReport.from_json(value)
    for stage in value["stages"]:
        del stage["quantiles"]
    del value["reference"], value["blame"]
    again = ParityReport.from_json(value)
    assert again.verdict == whole.verdict and again.reference is None and not again.stages[0].quantiles
