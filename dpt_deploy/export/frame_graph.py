"""Frame graphs, made from model graphs: pre- and post-processing are put around the network as nodes.

Resizing is two matrix products in FP32, A_h X A_w^T. Their antialiased triangle-filter matrices are computed from the
frame's shape, so that one graph accepts every frame size. The integer arithmetic is that of `contract.content_box`, the
filter that of `contract.resize_weights`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..core.contract import Contract, TensorSpec
from ..core.onnx_nodes import Nodes, surround
from .graph import finish


def export_frame_graph(contract: Contract, network: Path, path: Path, metadata: dict[str, str]) -> None:
    """Make a frame graph from a model graph: the network is not exported a second time.

    Args:
        contract: The contract of both graphs.
        network: The ONNX file of the model graph.
        path: The file to write. Weights of nearly 2 GB are written to `path` + ".data".
        metadata: Entries to add to the graph's metadata.

    Raises:
        BuildError: The graph does not pass `onnx.checker`, or differs from the contract.
    """
    model = onnx.load(network)
    del model.metadata_props[:]
    graph, maps = model.graph, list(contract.outputs("model"))
    # The model's maps and those of the frame share names, and in one graph they must differ.
    _rename(graph, {name: f"network/{name}" for name in maps})
    before, after = Nodes("before/"), Nodes("after/")
    _Processing(before, contract).before()
    _Processing(after, contract).after(maps)
    surround(graph, before, after)
    graph.input.extend(_values(contract.inputs("frame")))
    graph.output.extend(_values(contract.outputs("frame")))
    finish(model, path, "frame", contract, metadata)


@dataclass(frozen=True)
class _Side:
    """One axis of the frame, and of the network's input that shows it. Values are names of int64 tensors (1,)."""

    size: str
    """Length of the frame's axis [pixels]."""
    indices: str
    """0 to `size` - 1, float32 (size,)."""
    input_size: int
    offset: str
    """Where the frame begins in the input."""
    extent: str
    """How many pixels of the input the frame covers."""


class _Processing:
    """Writes the nodes before or after the network."""

    def __init__(self, nodes: Nodes, contract: Contract) -> None:
        self.add, self.contract = nodes, contract
        self.letterbox = contract.resize == "letterbox"

    def before(self) -> None:
        """From "frame", uint8 (N, H, W, 3) RGB, to "image", float32 (N, 3, h, w), the network's input."""
        add, (input_h, _) = self.add, self.contract.input_size
        rows, columns = self._sides()
        x = add("Cast", "frame", to=TensorProto.FLOAT)
        x = add("Reshape", x, add.integers(0, 0, -1))  # (N, H, W * 3)
        # Rows first, because they are contiguous in memory.
        x = add("MatMul", self._to_input(rows), x)  # (N, h, W * 3)
        x = add("Reshape", x, add.integers(0, input_h, -1, 3))  # (N, h, W, 3)
        x = add("Transpose", x, perm=[0, 3, 1, 2])  # (N, 3, h, W)
        x = add("MatMul", x, add("Transpose", self._to_input(columns), perm=[1, 0]))  # (N, 3, h, w)
        # RGB in [0, 255] -> (x / 255 - mean) / std, as one multiplication and one addition.
        mean, std = (np.array(values).reshape(3, 1, 1) for values in (self.contract.mean, self.contract.std))
        scale = add.constant((1 / (255 * std)).astype(np.float32), "scale")
        shift = add.constant((-mean / std).astype(np.float32), "shift")
        add("Add", add("Mul", x, scale), shift, output="image")

    def after(self, maps: list[str]) -> None:
        """From the network's `maps`, named "network/...", and the shape of "frame" to the maps of the frame's size."""
        add = self.add
        rows, columns = (self._to_frame(side) for side in self._sides())
        columns = add("Transpose", columns, perm=[1, 0])

        def resized(x: str) -> str:  # (N, C, h, w) -> (N, C, H, W)
            return add("MatMul", rows, add("MatMul", x, columns))

        channel = add.integers(1)
        if "depth" in maps:
            add("Squeeze", resized("network/depth"), channel, output="depth")
        if "normals" in maps:
            normals = add("Transpose", resized("network/normals"), perm=[0, 2, 3, 1])  # (N, H, W, 3)
            length = add("Sqrt", add("ReduceSum", add("Mul", normals, normals), add.integers(-1), keepdims=1))
            add("Div", normals, add("Clip", length, add.number(1e-6)), output="normals")
        if "alpha_logits" in maps:
            # Sigmoid before the resize: coverage can be averaged linearly, logits cannot.
            add("Squeeze", resized(add("Sigmoid", "network/alpha_logits")), channel, output="alpha")

    def _sides(self) -> tuple[_Side, _Side]:
        """Rows and columns."""
        add = self.add
        sizes = [add("Shape", "frame", start=axis, end=axis + 1) for axis in (1, 2)]
        sides = []
        for axis, (size, input_size) in enumerate(zip(sizes, self.contract.input_size, strict=True)):
            count = add("Squeeze", size, add.integers(0))
            indices = add("Range", add.constant(np.int64(0)), count, add.constant(np.int64(1)))
            offset, extent = add.integers(0), add.integers(input_size)
            if self.letterbox:
                extent = self._extent(size, sizes[1 - axis], *self.contract.input_size[:: -1 if axis else 1])
                offset = add("Div", add("Sub", add.integers(input_size), extent), add.integers(2))
            sides.append(_Side(size, add("Cast", indices, to=TensorProto.FLOAT), input_size, offset, extent))
        return sides[0], sides[1]

    def _extent(self, size: str, other: str, input_size: int, other_input: int) -> str:
        """Length of one axis of the content box: the size that keeps the frame's aspect ratio, at most the input's."""
        add = self.add
        numerator = add("Add", add("Mul", size, add.integers(2 * other_input)), other)
        fitted = add("Div", numerator, add("Mul", other, add.integers(2)))
        return add("Max", add("Min", fitted, add.integers(input_size)), add.integers(1))

    def _to_input(self, side: _Side) -> str:
        """Weights (input_size, size) that resize an axis of the frame to the input."""
        add = self.add
        positions = np.arange(side.input_size).reshape(-1, 1)
        if self.letterbox:  # padding repeats the edge of the content
            inside = add("Max", add("Sub", add.constant(positions), side.offset), add.integers(0))
            inside = add("Min", inside, add("Sub", side.extent, add.integers(1)))
            position = add("Cast", inside, to=TensorProto.FLOAT)
        else:
            position = add.constant(positions.astype(np.float32))
        return self._normalised(self._triangle(position, side.indices, side.size, side.extent))

    def _to_frame(self, side: _Side) -> str:
        """Weights (size, input_size) that resize the content of a map to an axis of the frame."""
        add = self.add
        position = add("Unsqueeze", side.indices, add.integers(1))
        indices = np.arange(side.input_size)
        if not self.letterbox:
            source = add.constant(indices.astype(np.float32))
            return self._normalised(self._triangle(position, source, side.extent, side.size))
        source = add("Sub", add.constant(indices), side.offset)
        weights = self._triangle(position, add("Cast", source, to=TensorProto.FLOAT), side.extent, side.size)
        inside = add("And", add("GreaterOrEqual", source, add.integers(0)), add("Less", source, side.extent))
        return self._normalised(add("Mul", weights, add("Cast", inside, to=TensorProto.FLOAT)))

    def _triangle(self, position: str, source: str, size_in: str, size_out: str) -> str:
        """Triangle-filter weights of `source` (m,) at `position` (n, 1), when `size_in` is resized to `size_out`.

        Positions and sources are float32 indices of pixels, the sizes int64 (1,). Returns float32 (n, m); rows do not
        sum to one.
        """
        add = self.add
        scale = add("Div", *(add("Cast", size, to=TensorProto.FLOAT) for size in (size_in, size_out)))
        support = add("Clip", scale, add.number(1))
        centre = add("Mul", add("Add", position, add.number(0.5)), scale)
        distance = add("Abs", add("Sub", add("Add", source, add.number(0.5)), centre))
        return add("Clip", add("Sub", add.number(1), add("Div", distance, support)), add.number(0))

    def _normalised(self, weights: str) -> str:
        total = self.add("ReduceSum", weights, self.add.integers(1), keepdims=1)
        return self.add("Div", weights, total)


def _values(specs: dict[str, TensorSpec]) -> list[onnx.ValueInfoProto]:
    """Inputs or outputs of a contract, as a graph lists them."""
    return [helper.make_tensor_value_info(spec.name, helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)), spec.shape)
            for spec in specs.values()]


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Rename tensors in place."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for entry in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        entry.name = names.get(entry.name, entry.name)
