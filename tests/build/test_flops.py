"""The work of a graph, against PyTorch's own counter and against hand-made nodes."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from dpt_deploy.build.flops import input_sizes, matrix_work, modules_of
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BuildError
from tests.tiny import lively_model, tiny_bundle  # noqa: F401


def test_pytorch_counts_the_same(tiny_bundle):  # noqa: F811
    work = matrix_work(tiny_bundle / "model.fp32.onnx", input_sizes((160, 160)))
    model = lively_model()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 160, 160))
    # PyTorch's counter does not see attention on the CPU: two products of 101 tokens, 64 channels, in 6 blocks.
    attention = 6 * 2 * 2 * 101 * 101 * 64
    assert sum(item.flops for item in work) == counter.get_total_flops() + attention
    assert sum(item.flops for item in work if item.operator == "Attention") == attention


def test_types_and_modules(tiny_bundle):  # noqa: F811
    work = matrix_work(tiny_bundle / "frame.fp16.onnx", input_sizes((160, 160)))
    resize = [item for item in work if item.module is None]
    assert {item.dtype for item in resize} == {"fp32"} and len(resize) == 8
    assert {item.dtype for item in work if item.module} == {"fp16"}
    modules = {item.module for item in work}
    assert {"backbone.patch_embed.proj", "backbone.blocks.5.mlp.fc2", "heads.alpha.conv3"} <= modules
    attention = [item.module for item in work if item.operator == "Attention"]
    assert attention == [f"backbone.blocks.{i}.attn.qkv" for i in range(6)]


def test_work_follows_batch_and_frame_size(tiny_bundle):  # noqa: F811
    def total(sizes, file="model.fp16.onnx"):
        return sum(item.flops for item in matrix_work(tiny_bundle / file, sizes))

    assert total(input_sizes((160, 160), batch=3)) == 3 * total(input_sizes((160, 160)))
    small, large = ({"batch": 1, "height": h, "width": w} for h, w in ((120, 200), (720, 1280)))
    assert total(small, "frame.fp16.onnx") < total(large, "frame.fp16.onnx")
    assert total(small) == total(large)


@pytest.mark.parametrize("bundle_file", ["model.fp16.onnx", "frame.fp32.onnx"])
def test_the_graph_is_left_as_it_was(tiny_bundle, bundle_file):  # noqa: F811
    model = onnx.load(Bundle.open(tiny_bundle).folder / bundle_file)
    before = model.SerializeToString(deterministic=True)
    matrix_work(model, input_sizes((160, 160)))
    modules_of(model)
    assert model.SerializeToString(deterministic=True) == before


def opset_23(graph):
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])


def one_node(node, shapes, output):
    """A graph of one node with float inputs."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, output)]
    return opset_23(helper.make_graph([node], "one", inputs, outputs))


@pytest.mark.parametrize(
    ("node", "shapes", "output", "flops"),
    [
        (("Gemm", {}), {"a": (5, 7), "b": (7, 3)}, (5, 3), 2 * 5 * 7 * 3),
        (("Gemm", {"transA": 1}), {"a": (7, 5), "b": (7, 3)}, (5, 3), 2 * 5 * 7 * 3),
        (("Conv", {"group": 2}), {"x": (1, 4, 8, 8), "w": (6, 2, 3, 3)}, (1, 6, 6, 6), 2 * 6 * 36 * 2 * 9),
        (("ConvTranspose", {"strides": [2, 2]}), {"x": (1, 4, 8, 8), "w": (4, 5, 2, 2)}, (1, 5, 16, 16),
         2 * 256 * 4 * 5),
        (("Attention", {}), {"q": (1, 2, 9, 4), "k": (1, 2, 11, 4), "v": (1, 2, 11, 6)}, (1, 2, 9, 6),
         2 * 2 * 9 * 11 * (4 + 6)),
    ],
)
def test_each_operator(node, shapes, output, flops):
    operator, attributes = node
    made = helper.make_node(operator, list(shapes), ["y"], name="n", **attributes)
    (item,) = matrix_work(one_node(made, shapes, output), {})
    assert (item.flops, item.operator, item.dtype, item.module) == (flops, operator, "fp32", None)


def test_unknown_shapes_are_refused_and_not_counted_as_nothing():
    nodes = [helper.make_node("NonZero", ["x"], ["i"]), helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
             helper.make_node("MatMul", ["w", "f"], ["y"], name="product")]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (4, 4)),
              helper.make_tensor_value_info("w", TensorProto.FLOAT, (3, 2))]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, (3, None))]
    model = opset_23(helper.make_graph(nodes, "g", inputs, outputs))
    with pytest.raises(BuildError, match="product"):
        matrix_work(model, {})
