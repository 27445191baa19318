"""Write nodes of an ONNX graph one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx


class Nodes:
    """Nodes and constants to add to a graph. Needs onnx, which not every installation has."""

    def __init__(self, prefix: str) -> None:
        """The names of all nodes and tensors begin with `prefix`."""
        import onnx

        self._onnx, self._prefix, self._count = onnx, prefix, 0
        self._constants: dict[tuple[object, ...], str] = {}
        self.node: list[onnx.NodeProto] = []
        self.initializer: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node; returns the name of its one output, which is `output` if that is given."""
        name = self._name(operator)
        self.node.append(self._onnx.helper.make_node(operator, inputs, [output or name], name, **attributes))
        return output or name

    def split(self, value: str, count: int, axis: int) -> list[str]:
        """The names of `count` equal parts of a tensor along an axis."""
        names = [self._name("Split") for _ in range(count)]
        self.node.append(self._onnx.helper.make_node("Split", [value], names, names[0], axis=axis, num_outputs=count))
        return names

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(np.array(values, np.int64))

    def constant(self, value: np.ndarray | np.generic, name: str = "") -> str:
        """A constant called `name`, if that is given; equal ones are stored once."""
        value = np.asarray(value)
        key = (value.dtype.str, value.shape, value.tobytes(), name)
        if key not in self._constants:
            self._constants[key] = f"{self._prefix}{name}" if name else self._name("constant")
            self.initializer.append(self._onnx.numpy_helper.from_array(value, self._constants[key]))
        return self._constants[key]

    def add_to(self, graph: onnx.GraphProto) -> None:
        """Append everything to a graph."""
        graph.node.extend(self.node)
        graph.initializer.extend(self.initializer)

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._prefix}{what}_{self._count}"


def surround(graph: onnx.GraphProto, before: Nodes, after: Nodes) -> None:
    """Put nodes before and after those of a graph, in place. It then needs other inputs and outputs and has none."""
    nodes = [*before.node, *graph.node, *after.node]
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.initializer, *after.initializer])
