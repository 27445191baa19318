"""What goes wrong in the field, planted in an artefact: the verdict fails, and names the head or the stage."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.manifest import PrecisionPlan
from dpt_deploy.export import frame_graph
from dpt_deploy.export.pytorch_reference import make_reference
from dpt_deploy.export.search import judge_half
from dpt_deploy.parity import ParityReport, load_budget
from dpt_deploy.parity.images import scene
from dpt_deploy.parity.judge import judge
from tests.parity.conftest import MEAN, STD, describe
from tests.tiny import export_frame, lively_model

BUDGET, _ = load_budget(None)
STAGE = "ONNX Runtime frame fp32"
FLOAT = onnx.TensorProto.FLOAT


@pytest.fixture
def planted(imagenet, tmp_path, only_python):
    """A copy of the ImageNet bundle; call it with a change of the ONNX graph to have it judged."""
    _, _, folder = imagenet
    copy = Bundle.open(shutil.copytree(folder, tmp_path / "planted"))

    def judged(change):
        path = copy.folder / "frame.fp32.onnx"
        model = onnx.load(path)
        change(model.graph)
        onnx.save(model, path)
        describe(copy)
        return judge(copy).report

    return judged


def values(graph, name, change):
    """Change an initializer's values."""
    (tensor,) = [t for t in graph.initializer if t.name == name]
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(numpy_helper.to_array(tensor))), name))


def normalise(mean, std):
    """The graph normalises with another mean and std."""
    scale = 1 / (255 * np.array(std, np.float32)).reshape(3, 1, 1)
    shift = (-np.array(mean, np.float32) / np.array(std, np.float32)).reshape(3, 1, 1)

    def change(graph):
        values(graph, "before/scale", lambda old: scale)
        values(graph, "before/shift", lambda old: shift)
    return change


def bgr(graph):
    values(graph, "backbone.patch_embed.proj.weight", lambda old: old[:, ::-1])


def swap_normals(graph):
    for name in ("heads.normals.conv3.weight", "heads.normals.conv3.bias"):
        values(graph, name, lambda old: old[[1, 0, 2]])


def sigmoid_twice(graph):
    (node,) = [n for n in graph.node if n.op_type == "Sigmoid"]
    rewire(graph, node.output[0], "twice")
    extra = onnx.helper.make_node("Sigmoid", [node.output[0]], ["twice"])
    graph.node.insert(list(graph.node).index(node) + 1, extra)


def no_sigmoid(graph):
    (node,) = [n for n in graph.node if n.op_type == "Sigmoid"]
    rewire(graph, node.output[0], node.input[0])
    graph.node.remove(node)


def rewire(graph, old, new):
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new


def frozen_batch(graph):
    """A batch of 1, as an export without a dynamic axis leaves it."""
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


@pytest.mark.parametrize(
    ("change", "head"),
    [
        (normalise(STD, MEAN), None),  # mean and std swapped
        (normalise(MEAN[::-1], STD[::-1]), None),  # in the order of BGR
        (normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), None),
        (bgr, None), (swap_normals, "normals"), (sigmoid_twice, "alpha"), (no_sigmoid, "alpha"),
        (lambda graph: values(graph, "heads.depth.conv3.weight", lambda old: old * np.float32(1.01)), "depth"),
    ],
    ids=["mean and std swapped", "mean and std in BGR order", "another mean and std", "BGR for RGB",
         "a normal channel swapped", "sigmoid twice", "no sigmoid", "a weight off by 1 %"],
)
def test_a_fault_in_the_graph_fails_and_is_named(planted, change, head):
    report = planted(change)
    assert [stage.name for stage in report.failed] == [STAGE] and not report.passed
    assert report.blame == (f"the error enters between PyTorch FP32 and {STAGE}",)
    assert report.blame[0] in report.verdict
    if head:
        assert {finding.head for finding in report.failed[0].findings} == {head}
        assert all(reason.startswith(f"{head} ") for reason in report.failed[0].reasons)


def test_the_graph_without_a_fault_passes(planted):
    assert planted(lambda graph: None).verdict.startswith("PASSED: 1 of 1")


def test_a_frozen_batch_fails_and_says_so(planted):
    report = planted(frozen_batch)
    assert report.failed[0].name == STAGE
    assert any(reason.startswith("a batch of 2 of a raised") for reason in report.failed[0].reasons)


def no_antialiasing(self, position, source, size_in, size_out):
    """Bilinear sampling of the nearest two pixels, whatever the scale."""
    add = self.add
    scale = add("Div", *(add("Cast", size, to=FLOAT) for size in (size_in, size_out)))
    centre = add("Mul", add("Add", position, add.number(0.5)), scale)
    distance = add("Abs", add("Sub", add("Add", source, add.number(0.5)), centre))
    return add("Clip", add("Sub", add.number(1), distance), add.number(0))


def aligned_corners(self, position, source, size_in, size_out):
    """The corners' pixel centres on each other, the rule of align_corners=True, antialiased."""
    add = self.add
    scale = add("Div", *(add("Sub", add("Cast", size, to=FLOAT), add.number(1)) for size in (size_in, size_out)))
    distance = add("Abs", add("Sub", source, add("Mul", position, scale)))
    distance = add("Div", distance, add("Clip", scale, add.number(1)))
    return add("Clip", add("Sub", add.number(1), distance), add.number(0))


@pytest.mark.parametrize("fault", [no_antialiasing, aligned_corners])
def test_another_resize_fails(imagenet, tmp_path, only_python, monkeypatch, fault):
    model, contract, folder = imagenet
    copy = Bundle.open(shutil.copytree(folder, tmp_path / "resized"))
    monkeypatch.setattr(frame_graph._Processing, "_triangle", fault)
    export_frame(model, contract, copy.folder / "frame.fp32.onnx")
    describe(copy)
    report = judge(copy).report
    assert [stage.name for stage in report.failed] == [STAGE]
    if fault is no_antialiasing:  # where a frame is enlarged, there is nothing to antialias
        assert set(report.failed[0].worst.values()) == {"large"}


def residual_stream(model):
    for block in model.backbone.blocks[1:3]:  # 40000 twice in one channel: 80000 is beyond FP16's range
        block.mlp.fc2.bias[0] += 40000


def decoder(model):
    unit = model.decoder.fusion[2].unit
    unit.conv1.bias[0] += 400
    unit.conv2.weight[1, 0] = 20  # nine taps: 72000


@pytest.mark.parametrize("rescale", [residual_stream, decoder])
def test_fp16_overflow_is_seen_by_pytorch_in_half(rescale):
    model = lively_model()
    with torch.no_grad():
        rescale(model)
    reference = make_reference(model, model.contract(), [("scene", False, scene(96, 128, 1))])
    assert all(np.isfinite(value).all() for value in reference.cases[0].maps["model"].values())
    stage = judge_half(model, PrecisionPlan("fp16"), reference, BUDGET, "PyTorch fp16")
    assert stage.status == "failed"
    assert any("is NaN or Inf" in reason for reason in stage.reasons)
    report = ParityReport((stage,), BUDGET, "default", ("scene",))
    assert report.blame == ("the error enters between PyTorch FP32 and PyTorch fp16",)


def test_overflow_on_an_adversarial_input_alone_fails():
    model = lively_model()
    with torch.no_grad():
        residual_stream(model)
    scenes = [("scene", False, scene(96, 128, 1)), ("white", True, np.full((96, 128, 3), 255, np.uint8))]
    reference = make_reference(model, model.contract(), scenes)
    reference = dataclasses.replace(reference, cases=(reference.cases[1],))
    assert not judge_half(model, PrecisionPlan("fp16"), reference, BUDGET, "PyTorch fp16").passed
