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
from dpt_deploy.parity.judge import judge, last_report
from dpt_deploy.parity.weights import compare_weights
from tests.tiny import tiny_bundle  # noqa: F401


@pytest.fixture
def bundle(tiny_bundle, tmp_path):  # noqa: F811
    """A bundle with the frame graph alone, that a test may change."""
    source = Bundle.open(tiny_bundle)
    copy = Bundle(tmp_path / "bundle", source.header, [])
    copy.folder.mkdir()
    for file, kind, fields in (
        ("frame.fp32.onnx", "onnx", {"graph": "frame", "precision": "fp32", "details": {"opset": 23}}),
        ("reference.npz", "reference", {}),
    ):
        (copy.folder / file).write_bytes((tiny_bundle / file).read_bytes())
        copy.add(file, kind, **fields)
    return copy


def replant(bundle, change):
    """Apply `change` to the frame graph and describe the file anew, as a broken exporter would."""
    path = bundle.folder / "frame.fp32.onnx"
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    bundle.add(path.name, "onnx", graph="frame", precision="fp32", details={"opset": 23})


def scale(name, factor):
    def change(graph):
        (tensor,) = [t for t in graph.initializer if t.name == name]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))
    return change


def swap_normals(graph):
    (tensor,) = [t for t in graph.initializer if t.name == "heads.normals.conv3.weight"]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[[1, 0, 2]].copy(), tensor.name))
    (bias,) = [t for t in graph.initializer if t.name == "heads.normals.conv3.bias"]
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias)[[1, 0, 2]].copy(), bias.name))


def bgr(graph):
    (weight,) = [t for t in graph.initializer if t.name == "backbone.patch_embed.proj.weight"]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:, ::-1].copy(), weight.name))


def sigmoid_twice(graph):
    (node,) = [n for n in graph.node if n.op_type == "Sigmoid"]
    extra = onnx.helper.make_node("Sigmoid", [node.output[0]], ["twice"])
    for other in graph.node:
        for i, name in enumerate(other.input):
            if name == node.output[0]:
                other.input[i] = "twice"
    position = list(graph.node).index(node)
    graph.node.insert(position + 1, extra)


@pytest.mark.parametrize(
    ("change", "head"),
    [
        (scale("shift", 0.97), None), (scale("scale", 1.02), None), (bgr, None), (swap_normals, "normals"),
        (sigmoid_twice, "alpha"), (scale("heads.depth.conv3.weight", 1.01), "depth"),
    ],
)
def test_planted_faults_fail_and_name_the_stage(bundle, change, head):
    assert judge(bundle)
    replant(bundle, change)
    report = judge(bundle)
    assert not report
    assert report.failed[0].artifact == "frame.fp32.onnx"
    if head:
        assert all(reason.startswith(head) for reason in report.failed[0].reasons)


def test_report_and_record_are_written_and_hashed(bundle):
    report = judge(bundle, command="python -m dpt_deploy.parity")
    assert last_report(bundle).verdict == report.verdict
    page = (bundle.folder / "report.html").read_text()
    assert report.verdict in page and "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    for artifact in Bundle.open(bundle.folder).artifacts:
        bundle.path(artifact)


def test_a_stage_is_carried_over_only_while_its_artefact_is_unchanged(bundle):
    from dpt_deploy.parity import Stage

    (graph,) = bundle.find("onnx")
    known = Stage("weights frame fp32", "passed", "fp32", graph.file, graph.sha256)
    failed = Stage("PyTorch fp16", "failed", "fp16", graph.file, graph.sha256, reasons=("depth",))
    judge(bundle, known=[known, failed])
    again = judge(bundle)
    assert known in again.stages and failed in again.stages and not again
    replant(bundle, scale("heads.depth.conv3.weight", 1.0000001))
    if bundle.find("onnx")[0].sha256 != graph.sha256:
        assert known not in judge(bundle).stages


def test_a_bundle_without_reference_cannot_be_judged(bundle):
    bundle.remove(bundle.find("reference")[0])
    with pytest.raises(BadBundle, match=r"reference\.npz"):
        judge(bundle)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_weight_off_by_one_percent_and_every_dropped_bias_is_named(tiny_bundle, tmp_path, precision):  # noqa: F811
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


def test_missing_and_left_over_weights_are_named(tiny_bundle):  # noqa: F811
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
