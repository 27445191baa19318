"""Matrix work in an ONNX graph: how many floating-point operations, in which type, of which module.

Counts MatMul, Gemm, Conv, ConvTranspose and Attention, a multiplication and an addition as two. Needs
onnx alone, so that exporters, builders and reports agree on one number.
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

SMALL = 64  # values; a constant that sizes depend on has a few
OPERATORS = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention")
SIZE_OPERATORS = (  # what sizes are computed with
    "Add", "Sub", "Mul", "Div", "Cast", "Concat", "Constant", "Gather", "Identity", "Max", "Min", "Range", "Reshape",
    "Slice", "Squeeze", "Unsqueeze",
)
TYPES = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16", onnx.TensorProto.FLOAT: "fp32"}


@dataclass(frozen=True)
class Work:
    """The matrix work of one node."""

    node: str
    operator: str
    flops: int
    dtype: str
    """fp16, bf16 or fp32: the type of the node's output; other types by ONNX's own name."""
    module: str | None
    """The module whose weight it multiplies, such as decoder.fusion.2.out; an Attention has the module that feeds it.
    None for a product of two activations, and for the matrices that resize."""


def matrix_work(graph: Path | str | onnx.ModelProto, sizes: Mapping[str, int]) -> list[Work]:
    """The matrix work of a graph, node by node in graph order.

    `sizes` gives each dynamic axis of the inputs a size, such as {"batch": 1, "height": 720, "width":
    1280}; all in pixels but the batch. External data need not be there. Raises `BuildError` for a node
    whose shapes cannot be inferred.
    """
    model = graph if isinstance(graph, onnx.ModelProto) else onnx.load(graph, load_external_data=False)
    shapes, types = infer(model, sizes)
    modules = modules_of(model)
    found = []
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            continue
        ins = [shapes.get(name) for name in node.input]
        out = shapes.get(node.output[0])
        if not _known(out) or not all(map(_known, ins[:2])):
            raise BuildError(
                f"cannot count the work of {node.op_type} {node.name}: its shapes are {ins[:2]} -> {out}. Expected a "
                "graph that python -m dpt_deploy.export wrote."
            )
        dtype = types.get(node.output[0], 0)
        found.append(Work(
            node.name, node.op_type, _flops(node, ins, out),
            TYPES.get(dtype, onnx.TensorProto.DataType.Name(dtype).lower()), modules.get(node.name),
        ))
    return found


def input_sizes(size: tuple[int, int], batch: int = 1) -> dict[str, int]:
    """`sizes` of `matrix_work` for a batch of frames that are as large as the network's input (H, W)."""
    return {"batch": batch, "height": size[0], "width": size[1]}


def infer(
    model: onnx.ModelProto, sizes: Mapping[str, int]
) -> tuple[dict[str, list[int | str | None]], dict[str, int]]:
    """Shape and ONNX element type of every tensor, with the inputs' dynamic axes set to `sizes`."""
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
    """Per node name, the module whose weights it uses: backbone.blocks.0.attn.qkv for ...qkv.weight.

    A product of activations alone (Attention) has the module of the nearest weights that lead to its first input.
    """
    weights = {tensor.name for tensor in model.graph.initializer if "." in tensor.name}
    producers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, str] = {}
    for node in model.graph.node:
        own = next((name for name in node.input if name in weights), None)
        if own is not None:
            found[node.name] = own.removesuffix(".transposed").rpartition(".")[0]
        elif node.op_type == "Attention":
            upstream = producers.get(node.input[0])
            while upstream is not None and upstream.name not in found:
                upstream = producers.get(upstream.input[0]) if upstream.input else None
            if upstream is not None:
                found[node.name] = found[upstream.name]
    return found


def _flops(node: onnx.NodeProto, ins: list, out: list[int]) -> int:
    if node.op_type in ("MatMul", "Gemm"):
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * math.prod(out) * ins[0][-2 if transposed else -1]
    if node.op_type == "Conv":  # weight (out, in / groups, k, k): each output value is that many products
        return 2 * math.prod(out) * math.prod(ins[1][1:])
    if node.op_type == "ConvTranspose":  # weight (in, out / groups, k, k): each input value is spread over that many
        return 2 * math.prod(ins[0]) * math.prod(ins[1][1:])
    if len(ins[0]) != 4:
        raise BuildError(f"Attention {node.name}: expected inputs (N, heads, tokens, channels), received {ins[0]}.")
    n, heads, queries, channels = ins[0]
    return 2 * n * heads * queries * ins[1][2] * (channels + out[3])


def _known(shape: list | None) -> bool:
    return shape is not None and all(isinstance(size, int) for size in shape)


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large constants have a type and a shape, and no values: shapes do not depend on them."""
    graph = onnx.helper.make_graph(model.graph.node, model.graph.name, model.graph.input, model.graph.output)
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) > SMALL:
            graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            graph.initializer.append(tensor)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _fold_sizes(model: onnx.ModelProto) -> None:
    """Compute what depends on the inputs' shapes alone, and that shape inference cannot: how long a Range is,
    and what a Reshape or an Expand is given. In place.
    """
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    folded: dict[str, bool] = {}
    for node in graph.node:  # topological order: every producer comes first
        from_sizes = node.op_type == "Shape" and node.input[0] in inputs
        known = all(not name or name in constants or folded.get(name, False) for name in node.input)
        small = node.op_type in SIZE_OPERATORS
        folded |= dict.fromkeys(node.output, from_sizes or (known and small))
    targets = [node.output[0] for node in graph.node if node.op_type == "Range" and folded[node.output[0]]]
    targets += [
        node.input[1] for node in graph.node if node.op_type in ("Reshape", "Expand") and folded.get(node.input[1])
    ]
    targets = list(dict.fromkeys(targets))
    if not targets:
        return
    wanted, kept = set(targets), []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    sources = {name for node in kept for name in node.input}
    part = onnx.helper.make_graph(
        kept[::-1], "sizes", [value for name, value in inputs.items() if name in sources],
        [onnx.helper.make_empty_tensor_value_info(name) for name in targets],
        [tensor for name, tensor in constants.items() if name in sources],
    )
    small = onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)
    feeds = {
        value.name: np.zeros(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in part.input
    }
    for name, value in zip(targets, ReferenceEvaluator(small).run(None, feeds), strict=True):
        node = producers[name]
        graph.node.remove(node)
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
