"""A foreign model that predicts relative depth and nothing else."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

SIZE = (48, 64)


def relative_model(folder: Path) -> Path:
    """An ONNX file with its description beside it: depth (N, 1, 48, 64) is the mean of RGB in [-1, 1], over 1000.

    It has no unit, is negative too, and its range is tiny.
    """
    shape = ["n", 3, *SIZE]
    nodes = [helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
             helper.make_node("Mul", ["mean", "small"], ["far"])]
    graph = helper.make_graph(
        nodes, "relative", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("far", TensorProto.FLOAT, ["n", 1, *SIZE])],
        [helper.make_tensor("small", TensorProto.FLOAT, [], [0.001])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, folder / "other.onnx")
    (folder / "other.yaml").write_text(
        "input: {colours: rgb, white: 1, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], resize: stretch}\n"
        "outputs:\n  depth: {output: far, kind: relative, larger: farther}\n", encoding="utf-8")
    return folder / "other.onnx"
