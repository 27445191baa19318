"""The work of a graph, against PyTorch's own counter and against hand-made nodes."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from dpt_deploy.build.flops import eight_bit_share, input_sizes, matrix_work, modules_of
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BuildError
from dpt_deploy.core.manifest import PrecisionPlan
from tests.eight_bits import WIDE, quantized
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


SIZES = input_sizes((160, 160))


@pytest.fixture(scope="module", params=["int8", "fp8"])
def eight_bit_graph(request, tiny_bundle):  # noqa: F811
    """The tiny model graph with all layers but `WIDE` in eight bits; the precision; and the FP32 graph."""
    path = tiny_bundle / "model.fp32.onnx"
    model = quantized(Bundle.open(tiny_bundle), "model", PrecisionPlan(request.param, (), wide=WIDE))
    return model, request.param, onnx.load(path)


def test_a_quantized_node_keeps_its_module_and_its_work(eight_bit_graph):
    model, _, fp32 = eight_bit_graph
    assert modules_of(model) == modules_of(fp32)
    assert [(item.node, item.flops) for item in matrix_work(model, SIZES)] == [
        (item.node, item.flops) for item in matrix_work(fp32, SIZES)]


def test_products_of_two_quantized_operands_are_work_in_eight_bits(eight_bit_graph):
    model, precision, fp32 = eight_bit_graph
    for item in matrix_work(model, SIZES):
        wide = item.operator == "Attention" or item.module.startswith(WIDE)
        assert item.eight_bits == (None if wide else precision) and item.dtype == "fp32", item
    work = matrix_work(fp32, SIZES)
    assert {item.eight_bits for item in work} == {None} and eight_bit_share(fp32, SIZES) == 0
    wide = sum(item.flops for item in work if item.operator == "Attention" or item.module.startswith(WIDE))
    assert eight_bit_share(model, SIZES) == pytest.approx(1 - wide / sum(item.flops for item in work))


def test_weights_alone_make_no_work_in_eight_bits(tiny_bundle):  # noqa: F811
    model = quantized(Bundle.open(tiny_bundle), "model", PrecisionPlan("int8", (), weights_only=True))
    assert eight_bit_share(model, SIZES) == 0
    assert modules_of(model) == modules_of(onnx.load(tiny_bundle / "model.fp32.onnx"))


def product(weight="DQ", activation="QDQ", weight_type=TensorProto.INT8, between=()):
    """A graph of one MatMul, with what is asked for before its operands, and `between` after the dequantized weight."""
    nodes, tensors, operands = [], [], {"x": "x", "layer.weight": "layer.weight"}
    for name, form, kind in (("x", activation, TensorProto.INT8), ("layer.weight", weight, weight_type)):
        tensors += [helper.make_tensor(f"{name}/scale", TensorProto.FLOAT, [], [0.5]),
                    helper.make_tensor(f"{name}/zero", kind, [], b"\0", raw=True)]
        for letter in {"": "", "DQ": "D", "QDQ": "QD"}[form]:
            operator = {"Q": "QuantizeLinear", "D": "DequantizeLinear"}[letter]
            nodes.append(helper.make_node(operator, [operands[name], f"{name}/scale", f"{name}/zero"],
                                          [f"{name}/{letter}"], f"{name}/{letter}"))
            operands[name] = f"{name}/{letter}"
    for operator in between:
        nodes.append(helper.make_node(operator, [operands["layer.weight"]], ["moved"], operator))
        operands["layer.weight"] = "moved"
    stored = weight_type if weight == "DQ" else TensorProto.FLOAT
    size = 4 if stored == TensorProto.FLOAT else 1
    tensors.append(helper.make_tensor("layer.weight", stored, [4, 4], bytes(16 * size), raw=True))
    nodes.append(helper.make_node("MatMul", list(operands.values()), ["y"], "product"))
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, (3, 4))
    return opset_23(helper.make_graph(nodes, "g", [source], [helper.make_tensor_value_info("y", 1, (3, 4))], tensors))


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (product(), "int8"),
        (product(weight="QDQ"), "int8"),  # a weight that is stored in FP32 and quantized in the graph
        (product(between=("Transpose",)), "int8"),
        (product(between=("Relu",)), None),  # dequantized, and then computed with
        (product(activation=""), None),
        (product(weight=""), None),
        (product(weight_type=TensorProto.FLOAT8E4M3FN), None),  # one operand in each type
    ],
)
def test_both_operands_have_to_be_quantized(graph, expected):
    (item,) = matrix_work(graph, {})
    assert item.eight_bits == expected


def test_the_module_is_found_behind_quantizers_and_moves():
    assert modules_of(product(between=("Transpose",)))["product"] == "layer"
    assert modules_of(product(weight="QDQ")) == {"product": "layer"}
