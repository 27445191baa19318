"""Count the matrix FLOPs of an ONNX graph by node, data type and module.

Counts MatMul, Gemm, Conv, ConvTranspose and Attention; a multiply-add is two operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from ..core.errors import BuildError

MAX_SHAPE_CONSTANT = 64  # elements; shapes depend only on small constants
OPERATORS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention")
SHAPE_OPERATORS = (  # operators that shapes are computed with
    "Add", "Sub", "Mul", "Div", "Cast", "Concat", "Constant", "Gather", "Identity", "Max", "Min", "Range", "Reshape",
    "Slice", "Squeeze", "Unsqueeze",
)
TYPES = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16", onnx.TensorProto.FLOAT: "fp32"}
EIGHT_BIT_TYPES = {
    onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "int8", onnx.TensorProto.FLOAT8E4M3FN: "fp8",
    onnx.TensorProto.FLOAT8E5M2: "fp8",
}
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
MOVES = ("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")  # copy values, change none


@dataclass(frozen=True)
class Work:
    """The matrix FLOPs of one node, for the given sizes."""

    node: str
    operator: str
    flops: int
    dtype: str
    """Type of the node's output: fp16, bf16, fp32, or the lower-case ONNX name of another type."""
    module: str | None
    """The module whose weight it multiplies, such as decoder.fusion.2.out; for attention, the module before it. None
    for other products of two activations, such as the resize."""
    is_attention: bool = False
    """Whether it is an Attention operator, or one of the two products around a softmax."""
    eight_bits: str | None = None
    """int8 or fp8 if both operands were quantized to it. None for a product of floating-point values, such as one whose
    weight is stored in eight bits and whose activation is not quantized."""


def matrix_work(graph: Path | str | onnx.ModelProto, sizes: Mapping[str, int]) -> list[Work]:
    """Count the matrix FLOPs of each node, in graph order.

    Args:
        graph: The graph, or its file. External data is not needed.
        sizes: Size of each dynamic axis of the inputs, such as {"batch": 1, "height": 720, "width": 1280}.

    Raises:
        BuildError: The shapes of a node cannot be inferred.
    """
    model = graph if isinstance(graph, onnx.ModelProto) else onnx.load(graph, load_external_data=False)
    shapes, types = infer_shapes(model, sizes)
    modules, attention = modules_of(model), _attention_nodes(model)
    operands = _Operands(model, types)
    work = []
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            continue
        ins = [shapes.get(name) for name in node.input]
        out = shapes.get(node.output[0])
        if not _is_static(out) or not all(map(_is_static, ins[:2])):
            raise BuildError(
                f"{node.op_type} {node.name}: expected static shapes to count FLOPs, received {ins[:2]} -> {out}. Use "
                "a graph written by python -m dpt_deploy.export."
            )
        dtype = types.get(node.output[0], 0)
        work.append(Work(
            node.name, node.op_type, _flops(node, ins, out),
            TYPES.get(dtype, onnx.TensorProto.DataType.Name(dtype).lower()), modules.get(node.name),
            node.name in attention, operands.eight_bits(node),
        ))
    return work


def eight_bit_share(graph: Path | str | onnx.ModelProto, sizes: Mapping[str, int]) -> float:
    """The fraction of the matrix FLOPs whose operands are in eight bits. Arguments and errors as for `matrix_work`."""
    work = matrix_work(graph, sizes)
    return sum(item.flops for item in work if item.eight_bits) / max(1, sum(item.flops for item in work))


def input_sizes(size: tuple[int, int], batch: int = 1) -> dict[str, int]:
    """The argument `sizes` of `matrix_work` for inputs of size (H, W) [pixels]."""
    return {"batch": batch, "height": size[0], "width": size[1]}


def infer_shapes(
    model: onnx.ModelProto, sizes: Mapping[str, int]
) -> tuple[dict[str, list[int | str | None]], dict[str, int]]:
    """Shape and ONNX element type of every tensor by name, with the dynamic axes of the inputs set to `sizes`."""
    fixed = _without_weights(model)
    graph = fixed.graph
    for value in graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    _fold_sizes(fixed)
    inferred = shape_inference.infer_shapes(fixed, data_prop=True).graph
    shapes, types = {}, {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        tensor = value.type.tensor_type
        shapes[value.name] = [dim.dim_value or dim.dim_param or None for dim in tensor.shape.dim]
        types[value.name] = tensor.elem_type
    for tensor in graph.initializer:
        shapes[tensor.name], types[tensor.name] = list(tensor.dims), tensor.data_type
    return shapes, types


def modules_of(model: onnx.ModelProto) -> dict[str, str]:
    """The module whose weights each node uses, by node name: backbone.blocks.0.attn.qkv for ...qkv.weight.

    The weights may be quantized. Nodes that quantize or dequantize have no module. Attention, an operator or the
    products around a softmax, has no weights; it gets the nearest module upstream of its first input.
    """
    attention = _attention_nodes(model)
    weights = {tensor.name for tensor in model.graph.initializer if "." in tensor.name}
    producers = {name: node for node in model.graph.node for name in node.output}
    modules: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in QUANTIZERS:
            continue
        sources = (_before_quantizers(name, producers) for name in node.input)
        weight = next((name for name in sources if name in weights), None)
        if weight is not None:
            modules[node.name] = weight.removesuffix(".transposed").rpartition(".")[0]
        elif node.name in attention:
            upstream = producers.get(node.input[0])
            while upstream is not None and upstream.name not in modules:
                upstream = producers.get(upstream.input[0]) if upstream.input else None
            if upstream is not None:
                modules[node.name] = modules[upstream.name]
    return modules


def _attention_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the Attention operators, and of the matrix products before and after each softmax."""
    scores = {node.input[0] for node in model.graph.node if node.op_type == "Softmax"}
    weights = {node.output[0] for node in model.graph.node if node.op_type == "Softmax"}
    return {node.name for node in model.graph.node if node.op_type == "Attention"
            or (node.op_type == "MatMul" and (node.output[0] in scores or node.input[0] in weights))}


def _before_quantizers(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor that a tensor was quantized and dequantized from, or the tensor itself."""
    source, quantized = name, False
    while (node := producers.get(source)) is not None and node.op_type in (*QUANTIZERS, *MOVES):
        source, quantized = node.input[0], quantized or node.op_type in QUANTIZERS
    return source if quantized else name


class _Operands:
    """Finds the products of a graph whose operands are in eight bits."""

    def __init__(self, model: onnx.ModelProto, types: Mapping[str, int]) -> None:
        self.types = types
        self.constants = {tensor.name for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output}

    def eight_bits(self, node: onnx.NodeProto) -> str | None:
        """int8 or fp8 if both operands of a product are dequantized from it, else None."""
        if node.op_type == "Attention":
            return None
        kinds = {self._quantized_to(name) for name in node.input[:2]}
        return kinds.pop() if len(kinds) == 1 else None

    def _quantized_to(self, name: str) -> str | None:
        """int8 or fp8 if a tensor is dequantized from the output of QuantizeLinear, or from a constant."""
        dequantizer = self.producers.get(self._unmoved(name))
        if dequantizer is None or dequantizer.op_type != "DequantizeLinear":
            return None
        stored = self._unmoved(dequantizer.input[0])
        source = self.producers.get(stored)
        if stored not in self.constants and (source is None or source.op_type != "QuantizeLinear"):
            return None
        return EIGHT_BIT_TYPES.get(self.types.get(stored, 0))

    def _unmoved(self, name: str) -> str:
        while (node := self.producers.get(name)) is not None and node.op_type in MOVES:
            name = node.input[0]
        return name


def _flops(node: onnx.NodeProto, ins: list, out: list[int]) -> int:
    if node.op_type in ("MatMul", "Gemm"):
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * math.prod(out) * ins[0][-2 if transposed else -1]
    if node.op_type == "Conv":  # weight (out, in / groups, k, k): products per output value
        return 2 * math.prod(out) * math.prod(ins[1][1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, k, k): products per input value
        return 2 * math.prod(ins[0]) * math.prod(ins[1][1:])
    if len(ins[0]) != 4:
        raise BuildError(f"Attention {node.name}: expected an input (N, heads, tokens, channels), received {ins[0]}.")
    n, heads, queries, channels = ins[0]
    return 2 * n * heads * queries * ins[1][2] * (channels + out[3])


def _is_static(shape: list | None) -> bool:
    return shape is not None and all(isinstance(size, int) for size in shape)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the values of large constants, which shapes do not depend on."""
    graph = onnx.helper.make_graph(model.graph.node, model.graph.name, model.graph.input, model.graph.output)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > MAX_SHAPE_CONSTANT:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            graph.initializer.append(tensor)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _fold_sizes(model: onnx.ModelProto) -> None:
    """Replace values that depend only on the input shapes by constants, in place.

    Covers what ONNX shape inference does not: the output of Range, and the shape input of Reshape and Expand.
    """
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    folded: dict[str, bool] = {}
    for node in graph.node:  # topological order: every producer comes first
        input_shape = node.op_type == "Shape" and node.input[0] in inputs
        foldable = node.op_type in SHAPE_OPERATORS and all(
            not name or name in constants or folded.get(name, False) for name in node.input
        )
        folded |= dict.fromkeys(node.output, input_shape or foldable)
    targets = [node.output[0] for node in graph.node if node.op_type == "Range" and folded[node.output[0]]]
    targets += [
        node.input[1] for node in graph.node if node.op_type in ("Reshape", "Expand") and folded.get(node.input[1])
    ]
    targets = list(dict.fromkeys(targets))
    if not targets:
        return
    required, nodes = set(targets), []
    for node in reversed(graph.node):
        if required & set(node.output):
            nodes.append(node)
            required |= set(node.input)
    sources = {name for node in nodes for name in node.input}
    subgraph = onnx.helper.make_graph(
        nodes[::-1], "sizes", [value for name, value in inputs.items() if name in sources],
        [onnx.helper.make_empty_tensor_value_info(name) for name in targets],
        [tensor for name, tensor in constants.items() if name in sources],
    )
    submodel = onnx.helper.make_model(subgraph, opset_imports=model.opset_import, ir_version=model.ir_version)
    feeds = {}
    for value in subgraph.input:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feeds[value.name] = np.zeros([dim.dim_value for dim in tensor.shape.dim], dtype)
    for name, value in zip(targets, ReferenceEvaluator(submodel).run(None, feeds), strict=True):
        node = producers[name]
        graph.node.remove(node)
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
