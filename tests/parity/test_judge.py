"""A whole bundle judged: planted faults in its artefacts fail the verdict and name the stage."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dpt_deploy.bundle import Bundle
from dpt_deploy.errors import BadBundle
from dpt_deploy.model import read_checkpoint
from dpt_deploy.parity import Stage
from dpt_deploy.parity.judge import assess, judge, last_report, stage_names
from dpt_deploy.parity.weights import compare_weights
from tests.parity.conftest import describe


def replant(bundle, factor):
    """Scale the depth head's last weights in the frame graph and describe the file anew."""
    path = bundle.folder / "frame.fp32.onnx"
    model = onnx.load(path)
    (tensor,) = [t for t in model.graph.initializer if t.name == "heads.depth.conv3.weight"]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), tensor.name))
    onnx.save(model, path)
    return describe(bundle)


def test_report_and_record_are_written_and_hashed(bundle):
    report = judge(bundle, command="python -m dpt_deploy.parity")
    assert last_report(bundle).verdict == report.verdict
    page = (bundle.folder / "report.html").read_text()
    assert report.verdict.partition(": ")[2] in page and "data:image/png;base64," in page
    for artifact in Bundle.open(bundle.folder).artifacts:
        bundle.path(artifact)


def test_a_stage_is_carried_over_only_while_its_artefact_is_unchanged(bundle):
    (graph,) = bundle.find("onnx")
    known = Stage("weights frame fp32", "passed", "fp32", graph.file, graph.sha256)
    failed = Stage("PyTorch fp16", "failed", "fp16", graph.file, graph.sha256, reasons=("depth",))
    judge(bundle, known=[known, failed])
    names = stage_names(bundle)
    again = judge(bundle)
    assert known in again.stages and failed in again.stages and not again
    assert [stage.name for stage in again.stages] == names
    assert replant(bundle, 1.0001).sha256 != graph.sha256
    assert known not in judge(bundle).stages


def test_a_stage_is_carried_over_only_while_the_reference_is_unchanged(bundle):
    (graph,) = bundle.find("onnx")
    weights = Stage("weights frame fp32", "passed", "fp32", graph.file, graph.sha256)
    half = Stage("PyTorch fp16", "passed", "fp16", graph.file, graph.sha256)
    report = judge(bundle, known=[weights, half])
    assert report.reference == bundle.find("reference")[0].sha256
    with open(bundle.folder / "reference.npz", "ab") as file:
        file.write(b"\0")  # a zip may carry a tail
    bundle.add("reference.npz", "reference")
    again = judge(bundle).stages
    assert weights in again and half not in again


def test_a_carried_stage_is_held_to_the_budget_of_now(bundle, tmp_path):
    (graph,) = bundle.find("onnx")
    heads = {"depth": {"abs_rel": 6e-4, "p99.9": 1e-3}}
    half = Stage("PyTorch fp16", "passed", "fp16", graph.file, graph.sha256, heads, {"depth": "scene"})
    assert judge(bundle, known=[half])
    strict = tmp_path / "strict.json"
    strict.write_text(json.dumps({"fp32": {"depth": {"abs_rel": 1e-5}}, "fp16": {"depth": {"abs_rel": 1e-4}}}))
    report = judge(bundle, strict)
    assert [stage.name for stage in report.failed] == ["PyTorch fp16"] and "strict.json" in report.verdict
    assert half in judge(bundle).stages  # and back


def test_assess_leaves_the_bundle_as_it_was(bundle):
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
    assert assess(Bundle.open(bundle.folder))
    assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before


def test_a_bundle_without_reference_cannot_be_judged(bundle):
    bundle.remove(bundle.find("reference")[0])
    with pytest.raises(BadBundle, match=r"reference\.npz"):
        judge(bundle)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_weight_off_by_one_percent_and_every_dropped_bias_is_named(tiny_bundle, precision):
    path = tiny_bundle / f"model.{precision}.onnx"
    state = read_checkpoint(tiny_bundle.parent / "tiny.pth").state_dict
    expected = {name: value.numpy() for name, value in state.items()}
    assert compare_weights(path, expected, precision)
    missed = []
    for name, value in expected.items():
        planted = expected | {name: value * np.float32(0 if name.endswith("bias") else 1.01)}
        if not value.any():
            continue  # dropping a bias of zeros changes nothing
        stage = compare_weights(path, planted, precision)
        if stage or not any(reason.startswith(f"{name} ") for reason in stage.reasons):
            missed.append(name)
    assert not missed


def test_missing_and_left_over_weights_are_named(tiny_bundle):
    state = read_checkpoint(tiny_bundle.parent / "tiny.pth").state_dict
    expected = {name: value.numpy() for name, value in state.items()}
    gone = expected.pop("decoder.fusion.0.out.bias")
    stage = compare_weights(tiny_bundle / "model.fp32.onnx", expected | {"decoder.new": gone}, "fp32")
    assert stage.reasons == (
        "decoder.new is missing from the graph", "decoder.fusion.0.out.bias is in the graph and not in the checkpoint",
    )


def test_parity_json_is_plain(bundle):
    judge(bundle)
    value = json.loads((bundle.folder / "parity.json").read_text())
    assert value["passed"] is True and value["stages"][0]["status"] in ("passed", "not run")
