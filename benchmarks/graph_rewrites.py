"""Exact rewrites of an ONNX graph, for `tuning.py`: the same function, with its operations in another order.

None of them has been faster in a side-by-side run, so that the exporter does not apply them. They change results by
rounding alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper


def project_before_resize(model: onnx.ModelProto) -> int:
    """Move every 1x1 convolution that follows a bilinear upsampling in front of it, where there are fewer pixels.

    This is exact: the weights of a bilinear resize sum to one, so that it commutes with a linear map over channels and
    its bias.

    Returns:
        How many convolutions were moved.
    """
    graph = model.graph
    producers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter([name for node in graph.node for name in node.input] + [value.name for value in graph.output])
    moved = 0
    for convolution in [node for node in graph.node if node.op_type == "Conv"]:
        weight = weights.get(convolution.input[1])
        resize = producers.get(convolution.input[0])
        if weight is None or list(weight.dims[2:]) != [1, 1] or resize is None or resize.op_type != "Resize":
            continue
        keeps_channels = weight.dims[0] == weight.dims[1]  # the target size of the Resize includes the channels
        linear = any(a.name == "mode" and a.s == b"linear" for a in resize.attribute)
        if readers[resize.output[0]] != 1 or not linear or not keeps_channels:
            continue
        source, end, between = resize.input[0], convolution.output[0], f"{convolution.output[0]}_small"
        convolution.input[0], convolution.output[0] = source, between
        resize.input[0], resize.output[0] = between, end
        moved += 1
    _sort(graph)
    return moved


def join_first_convolutions(model: onnx.ModelProto) -> int:
    """Join convolutions of one tensor with the same geometry (the heads' first ones) into one, and split its output.

    This is exact: output channels are independent.

    Returns:
        How many groups were joined.
    """
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    groups: dict[tuple, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 3 and node.input[1] in weights and node.input[2] in weights:
            geometry = tuple(sorted((a.name, a.SerializeToString()) for a in node.attribute))
            groups.setdefault((node.input[0], tuple(weights[node.input[1]].dims[1:]), geometry), []).append(node)
    joined = 0
    for nodes in groups.values():
        if len(nodes) < 2:
            continue
        name = f"joined_{joined}"
        for i, part in ((1, "weight"), (2, "bias")):
            arrays = [numpy_helper.to_array(weights[node.input[i]]) for node in nodes]
            graph.initializer.append(numpy_helper.from_array(np.concatenate(arrays), f"{name}.{part}"))
        sizes = np.array([weights[node.input[1]].dims[0] for node in nodes], np.int64)
        graph.initializer.append(numpy_helper.from_array(sizes, f"{name}.sizes"))
        inputs = [nodes[0].input[0], f"{name}.weight", f"{name}.bias"]
        convolution = helper.make_node("Conv", inputs, [f"{name}.out"], name=name)
        convolution.attribute.extend(nodes[0].attribute)
        split = helper.make_node("Split", [f"{name}.out", f"{name}.sizes"], [node.output[0] for node in nodes], axis=1,
                                 name=f"{name}.split")
        for node in nodes:
            graph.node.remove(node)
            for tensor in (weights[node.input[1]], weights[node.input[2]]):
                graph.initializer.remove(tensor)
        graph.node.extend([convolution, split])
        joined += 1
    _sort(graph)
    return joined


REWRITES: dict[str, Callable[[onnx.ModelProto], int]] = {
    "project-before-resize": project_before_resize,
    "join-first-convolutions": join_first_convolutions,
}
"""Each changes a model in place and returns how often it applied."""


def _sort(graph: onnx.GraphProto) -> None:
    """Sort the nodes topologically."""
    available = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    pending, ordered = list(graph.node), []
    while pending:
        ready = [node for node in pending if all(name in available for name in node.input)]
        if not ready:
            raise ValueError("the graph has a cycle")
        for node in ready:
            available.update(node.output)
        chosen = {id(node) for node in ready}
        ordered += ready
        pending = [node for node in pending if id(node) not in chosen]
    del graph.node[:]
    graph.node.extend(ordered)
