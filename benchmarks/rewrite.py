"""Exact rewrites of an ONNX graph, each behind a switch: the same function, in another order of operations.

None is applied by default: each stays off until a run side by side on its target shows a gain
(`benchmarks/tuning.py`, docs/speed.md). They change results by rounding alone.

    python -m dpt_deploy.export.rewrite IN.onnx OUT.onnx project-before-resize
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dpt_deploy.core.errors import BadInput


def project_before_resize(model: onnx.ModelProto) -> int:
    """Move a 1x1 convolution in front of the bilinear upsampling that feeds it, where it has fewer pixels.

    Exact: the weights of a bilinear resize sum to one, so that it commutes with a linear map over
    channels and its bias. Returns how many were moved.
    """
    graph = model.graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(graph)
    moved = 0
    for convolution in [node for node in graph.node if node.op_type == "Conv"]:
        weight = weights.get(convolution.input[1])
        resize = makers.get(convolution.input[0])
        if weight is None or list(weight.dims[2:]) != [1, 1] or resize is None or resize.op_type != "Resize":
            continue
        # The resize's target names its channels, so that they must stay as many as they were.
        same = weight.dims[0] == weight.dims[1]
        if readers[resize.output[0]] != 1 or _attribute(resize, "mode") != b"linear" or not same:
            continue
        source, end, between = resize.input[0], convolution.output[0], f"{convolution.output[0]}_small"
        convolution.input[0], convolution.output[0] = source, between
        resize.input[0], resize.output[0] = between, end
        moved += 1
    _sort(graph)
    return moved


def join_first_convolutions(model: onnx.ModelProto) -> int:
    """Compute convolutions that read one tensor with the same geometry (the heads' first) as one, then split.

    Exact: output channels are independent. Returns how many groups were joined.
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
            both = np.concatenate(arrays)
            graph.initializer.append(numpy_helper.from_array(both, f"{name}.{part}"))
        sizes = np.array([weights[node.input[1]].dims[0] for node in nodes], np.int64)
        graph.initializer.append(numpy_helper.from_array(sizes, f"{name}.sizes"))
        feeds = [nodes[0].input[0], f"{name}.weight", f"{name}.bias"]
        one = helper.make_node("Conv", feeds, [f"{name}.out"], name=name)
        one.attribute.extend(nodes[0].attribute)
        split = helper.make_node("Split", [f"{name}.out", f"{name}.sizes"], [node.output[0] for node in nodes], axis=1,
                                 name=f"{name}.split")
        for node in nodes:
            graph.node.remove(node)
            for tensor in (weights[node.input[1]], weights[node.input[2]]):
                graph.initializer.remove(tensor)
        graph.node.extend([one, split])
        joined += 1
    _sort(graph)
    return joined


REWRITES: dict[str, Callable[[onnx.ModelProto], int]] = {
    "project-before-resize": project_before_resize,
    "join-first-convolutions": join_first_convolutions,
}


def rewrite(model: onnx.ModelProto, names: Iterable[str]) -> dict[str, int]:
    """Apply the rewrites called `names` in place; how often each found its pattern. Raises `BadInput` for others."""
    names = list(names)
    if unknown := [name for name in names if name not in REWRITES]:
        raise BadInput(f"rewrite: expected names among {', '.join(REWRITES)}, received {', '.join(unknown)}.")
    return {name: REWRITES[name](model) for name in names}


def _readers(graph: onnx.GraphProto) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            counts[name] = counts.get(name, 0) + 1
    for value in graph.output:
        counts[value.name] = counts.get(value.name, 0) + 1
    return counts


def _attribute(node: onnx.NodeProto, name: str) -> bytes | None:
    return next((a.s for a in node.attribute if a.name == name), None)


def _sort(graph: onnx.GraphProto) -> None:
    """Put the nodes in an order in which each comes after what it reads."""
    made = {value.name for value in (*graph.input, *graph.initializer)} | {""}
    pending, ordered = list(graph.node), []
    while pending:
        ready = [node for node in pending if all(name in made for name in node.input)]
        if not ready:
            raise BadInput("rewrite: the graph has a cycle.")
        for node in ready:
            made.update(node.output)
        chosen = {id(node) for node in ready}
        ordered += ready
        pending = [node for node in pending if id(node) not in chosen]
    del graph.node[:]
    graph.node.extend(ordered)


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m dpt_deploy.export.rewrite", description=__doc__.partition("\n")[0])
    parser.add_argument("source", type=Path, help="graph to read, an ONNX file")
    parser.add_argument("target", type=Path, help="graph to write")
    parser.add_argument("rewrites", nargs="+", choices=list(REWRITES), help="what to apply, in this order")
    asked = parser.parse_args()
    if not asked.source.is_file():
        parser.error(f"expected an ONNX file, but there is no file {asked.source}")
    loaded = onnx.load(asked.source)
    print(" ".join(f"{name}: {count}" for name, count in rewrite(loaded, asked.rewrites).items()))
    onnx.save(loaded, asked.target)
