"""Frame graphs, made from model graphs: pre- and post-processing are exported alone and put around the network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import nn

from ..core.contract import Contract
from ..model.frame import FrameModel
from .graph import finish, trace


@dataclass(frozen=True)
class Processing:
    """The graphs before and after the network in a frame graph."""

    contract: Contract
    before: onnx.GraphProto
    """From the frame to the model's input."""
    after: onnx.GraphProto
    """From the frame's shape and the model's outputs, named "network/...", to the maps."""


def trace_processing(frame: FrameModel, opset: int) -> Processing:
    """The pre- and post-processing of a frame graph; the model in `frame` is not used. Raises `BuildError`."""
    contract = frame.contract
    (spec,), (image,) = contract.inputs("frame").values(), contract.inputs("model").values()
    maps = contract.outputs("model")
    # The model's maps and those of the frame share names, and in one graph they must differ.
    received = [dataclasses.replace(value, name=f"network/{name}") for name, value in maps.items()]
    before = trace(_Before(frame), [spec], [image.name], "the pre-processing", opset)
    after = trace(_After(frame, tuple(maps)), [spec, *received], list(contract.outputs("frame")),
                   "the post-processing", opset)
    return Processing(contract, _prefixed(before.graph, "before/"), _prefixed(after.graph, "after/"))


def export_frame_graph(processing: Processing, network: Path, path: Path, metadata: dict[str, str]) -> None:
    """Make a frame graph from a model graph: the network is not exported a second time.

    Args:
        processing: What comes before and after the network, of the same opset.
        network: The ONNX file of the model graph.
        path: The file to write. Weights of nearly 2 GB are written to `path` + ".data".
        metadata: Entries to add to the graph's metadata.

    Raises:
        BuildError: The graph does not pass `onnx.checker`, or differs from the contract.
    """
    model = onnx.load(network)
    del model.metadata_props[:]
    graph, before, after = model.graph, processing.before, processing.after
    _rename(graph, {value.name: f"network/{value.name}" for value in graph.output})
    nodes = [*before.node, *graph.node, *after.node]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.initializer, *after.initializer])
    graph.input.extend(before.input)
    graph.output.extend(after.output)
    finish(model, path, "frame", processing.contract, metadata)


class _Before(nn.Module):
    """The part of a frame graph before the network."""

    def __init__(self, frame: FrameModel) -> None:
        super().__init__()
        self.scale, self.shift = frame.scale, frame.shift
        self._run = frame.before

    def forward(self, frame: torch.Tensor) -> torch.Tensor:
        return self._run(frame)


class _After(nn.Module):
    """The part of a frame graph after the network."""

    def __init__(self, frame: FrameModel, names: tuple[str, ...]) -> None:
        super().__init__()
        self._run, self.names = frame.after, names

    def forward(self, frame: torch.Tensor, *maps: torch.Tensor) -> dict[str, torch.Tensor]:
        return self._run(frame, dict(zip(self.names, maps, strict=True)))


def _prefixed(graph: onnx.GraphProto, prefix: str) -> onnx.GraphProto:
    """`graph` with `prefix` before the names of all nodes and tensors except inputs and outputs, in place."""
    ends = {value.name for value in (*graph.input, *graph.output)}
    _rename(graph, {name: f"{prefix}{name}" for name in _values(graph) - ends})
    for node in graph.node:
        node.name = f"{prefix}{node.name}"
    return graph


def _values(graph: onnx.GraphProto) -> set[str]:
    """The names of all tensors of a graph."""
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    return (names | {tensor.name for tensor in graph.initializer} | {value.name for value in graph.output}) - {""}


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename tensors in place."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for entry in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        entry.name = names.get(entry.name, entry.name)
