"""Eight-bit graphs of a bundle, made from its FP32 graphs with plain onnx: what the runtime has to load.

The export chooses its ranges and its plan with more care. Here every layer with a weight is quantized, by the largest
values that two images give.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Graph
from dpt_deploy.core.manifest import Artifact, PrecisionPlan
from dpt_deploy.parity.images import scene
from dpt_deploy.runtime.image import preprocess

CHANNEL = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": -1}
"""The axis of the output channels in the weight of each operator."""
TYPES = {"int8": (np.dtype(np.int8), TensorProto.INT8, 127.0),
         "fp8": (np.dtype(ml_dtypes.float8_e4m3fn), TensorProto.FLOAT8E4M3FN, 448.0)}
"""NumPy type, ONNX type and largest value."""


def add_eight_bits(
    bundle: Bundle, precision: str = "int8", graphs: Sequence[Graph] = ("frame",), wide: tuple[str, ...] = (),
    weights_only: bool = False,
) -> None:
    """Write and register GRAPH.int8.onnx or GRAPH.fp8.onnx for each of `graphs`; modules in `wide` stay in FP32."""
    for graph in graphs:
        source = bundle.find("onnx", graph=graph, precision="fp32")[0]
        model = onnx.load(bundle.path(source))
        ranges = measured_ranges(bundle, model, graph)
        quantized(model, ranges, precision, wide, weights_only)
        file = f"{graph}.{precision}.onnx"
        onnx.save(model, bundle.folder / file)
        plan = PrecisionPlan(precision, fp32=(), wide=wide, weights_only=weights_only)
        bundle.add(file, "onnx", graph=graph, precision=precision,
                   details={"opset": model.opset_import[0].version, "plan": plan})


def eight_bit(bundle: Bundle, graph: Graph = "frame", precision: str = "int8") -> Artifact:
    """The artefact that `add_eight_bits` registered."""
    return bundle.find("onnx", graph=graph, precision=precision)[0]


def measured_ranges(bundle: Bundle, model: onnx.ModelProto, graph: Graph) -> dict[str, float]:
    """The largest magnitude of the input of every layer with a weight, over two images."""
    traced = onnx.ModelProto()
    traced.CopyFrom(model)
    names = sorted({node.input[0] for node in _layers(model)} - {model.graph.input[0].name})
    traced.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(traced.SerializeToString(), options, ["CPUExecutionProvider"])
    height, width = bundle.contract.input_size
    ranges = dict.fromkeys(names, 0.0)
    for seed in (1, 2):
        inputs = scene(height, width, seed)[None]
        feed = inputs if graph == "frame" else preprocess(inputs, bundle.contract)
        if graph == "model":
            ranges[model.graph.input[0].name] = max(ranges.get(model.graph.input[0].name, 0.0), abs(feed).max())
        for name, value in zip(names, session.run(names, {model.graph.input[0].name: feed}), strict=True):
            ranges[name] = max(ranges[name], float(abs(value).max()))
    return ranges


def quantized(
    model: onnx.ModelProto, ranges: dict[str, float], precision: str, wide: tuple[str, ...] = (),
    weights_only: bool = False,
) -> None:
    """Put QuantizeLinear and DequantizeLinear before every layer with a weight, in place."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    dtype, onnx_type, largest = TYPES[precision]
    done: dict[str, str] = {}
    nodes = []
    layers = [node.name for node in _layers(model) if not node.input[1].startswith(wide)]
    for node in list(graph.node):
        if node.name not in layers:
            nodes.append(node)
            continue
        x, weight = node.input[0], node.input[1]
        if x not in done and not weights_only:
            done[x] = f"{x}/dequantized"
            _constant(graph, f"{x}/scale", np.float32(ranges[x] / largest), TensorProto.FLOAT)
            _constant(graph, f"{x}/zero", np.zeros((), dtype), onnx_type)
            nodes.append(helper.make_node("QuantizeLinear", [x, f"{x}/scale", f"{x}/zero"], [f"{x}/eight"],
                                          f"{x}/quantize"))
            nodes.append(helper.make_node("DequantizeLinear", [f"{x}/eight", f"{x}/scale", f"{x}/zero"], [done[x]],
                                          f"{x}/dequantize"))
        if weight not in done:
            done[weight] = f"{weight}/dequantized"
            values = numpy_helper.to_array(weights[weight])
            axis = CHANNEL[node.op_type] % values.ndim
            others = tuple(i for i in range(values.ndim) if i != axis)
            scale = np.maximum(abs(values).max(axis=others) / largest, 1e-12).astype(np.float32)
            small = values / np.expand_dims(scale, others)
            graph.initializer.remove(weights[weight])
            _constant(graph, weight, (np.rint(small) if precision == "int8" else small).astype(dtype), onnx_type)
            _constant(graph, f"{weight}/scale", scale, TensorProto.FLOAT)
            _constant(graph, f"{weight}/zero", np.zeros(len(scale), dtype), onnx_type)
            nodes.append(helper.make_node("DequantizeLinear", [weight, f"{weight}/scale", f"{weight}/zero"],
                                          [done[weight]], f"{weight}/dequantize", axis=axis))
        node.input[0], node.input[1] = done.get(x, x), done[weight]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _layers(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    names = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in CHANNEL and node.input[1] in names and "." in node.input[1]:
            yield node


def _constant(graph: onnx.GraphProto, name: str, values: np.ndarray, onnx_type: int) -> None:
    tensor = TensorProto(name=name, data_type=onnx_type, dims=values.shape)
    tensor.raw_data = np.ascontiguousarray(values).tobytes()
    graph.initializer.append(tensor)
