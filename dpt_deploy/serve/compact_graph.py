"""Append the compact forms of the maps to a frame graph, as nodes: the server sends fewer bytes, and no code follows.

The nodes compute what `core.compact` computes in NumPy.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.compact import Form
from ..core.errors import BuildError, MissingPackage, first_line
from ..core.files import replacing
from ..core.install import install_command

if TYPE_CHECKING:
    import onnx

EXTERNAL_DATA_BYTES = 1_900_000_000
"""Protobuf's limit is 2 GiB; a graph with more weights than this is written with a second file."""


def write_compact_graph(source: Path, path: Path, forms: tuple[Form, ...]) -> None:
    """Write a frame graph with one more output for each form.

    Args:
        source: The ONNX file of the frame graph, float32 maps named depth, normals and alpha.
        path: The file to write. Weights of nearly 2 GB are written to `path` + ".data".
        forms: The forms, none of which is float32.

    Raises:
        MissingPackage: onnx is not installed.
        BuildError: The graph lacks a map, or the result does not pass `onnx.checker`.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackage("onnx is needed to append compact forms to a graph and is not installed. Run: "
                             f"{install_command('export', 'onnx')}") from error
    model = onnx.load(source)
    names = [value.name for value in model.graph.output]
    for form in forms:
        if form.head not in names:
            raise BuildError(f"{source.name}: expected an output {form.head}, received {', '.join(names)}.")
        _Nodes(onnx, model, form).append()
    model.metadata_props.add(key="compact", value=",".join(form.output for form in forms))
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EXTERNAL_DATA_BYTES
    with replacing(path) as temporary:
        data = f"{path.name}.data"
        onnx.save(model, temporary, save_as_external_data=external, location=data)
        try:
            onnx.checker.check_model(str(temporary), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise BuildError(f"{path.name} does not pass onnx.checker: {first_line(error)}") from error
        if external:
            (temporary.parent / data).replace(path.with_name(data))


class _Nodes:
    """Writes the nodes of one form behind the map of its head."""

    def __init__(self, package: Any, model: onnx.ModelProto, form: Form) -> None:
        self._onnx, self._graph, self._form = package, model.graph, form
        self._count = 0

    def append(self) -> None:
        form, x = self._form, self._form.head
        match form.name:
            case "float16":
                stored = x
            case "uint16-mm":
                stored = self._millimetres(x)
            case "octahedral" | "octahedral16":
                stored = self._rounded(self._octahedral(self._bounded(x, -1)), np.iinfo(form.dtype).max)
            case "uint8" | "uint16" if form.head == "normals":  # [-1, 1] -> [0, 1]
                half = self("Add", self("Mul", self._bounded(x, -1), self._number(0.5)), self._number(0.5))
                stored = self._rounded(half, np.iinfo(form.dtype).max)
            case _:  # int8 normals, uint8 and uint16 alpha
                low = -1.0 if np.dtype(form.dtype).kind == "i" else 0.0
                stored = self._rounded(self._bounded(x, low), np.iinfo(form.dtype).max)
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
        self._graph.node.append(self._onnx.helper.make_node("Cast", [stored], [form.output], self._name("Cast"),
                                                            to=kind))
        # (N, H, W) or (N, H, W, C)
        axes = [dimension.dim_param or dimension.dim_value
                for dimension in self._declared(form.head).type.tensor_type.shape.dim][:3]
        axes += [form.channels] if form.channels > 1 else []
        self._graph.output.append(self._onnx.helper.make_tensor_value_info(form.output, kind, axes))

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        name = self._name(operator)
        self._graph.node.append(self._onnx.helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def _millimetres(self, depth: str) -> str:
        rounded = self("Round", self("Mul", depth, self._number(1000)))
        at_least_one = self("Max", rounded, self._number(1))  # 0 stands for no depth
        # Both are False for NaN too.
        fits = self("And", self("Greater", depth, self._number(0)),
                    self("LessOrEqual", rounded, self._number(65535)))
        return self("Where", fits, at_least_one, self._number(0))

    def _octahedral(self, normals: str) -> str:
        """(N, H, W, 3) to (N, H, W, 2) in [-1, 1]; see `core.compact`."""
        axis = self._integers([-1])
        total = self("ReduceSum", self("Abs", normals), axis, keepdims=1)
        x, y, z = self._split(self("Div", normals, self("Max", total, self._number(1e-12))))
        behind = self("Less", z, self._number(0))
        folded = []
        for value, other in ((x, y), (y, x)):
            ahead = self("GreaterOrEqual", value, self._number(0))
            sign = self("Where", ahead, self._number(1), self._number(-1))
            fold = self("Mul", self("Sub", self._number(1), self("Abs", other)), sign)
            folded.append(self("Where", behind, fold, value))
        return self("Clip", self("Concat", *folded, axis=-1), self._number(-1), self._number(1))

    def _split(self, vectors: str) -> list[str]:
        names = [self._name("Split") for _ in range(3)]
        self._graph.node.append(self._onnx.helper.make_node("Split", [vectors], names, names[0], axis=-1,
                                                            num_outputs=3))
        return names

    def _bounded(self, x: str, low: float) -> str:
        """Values from `low` to 1; 0 for NaN."""
        return self("Clip", self("Where", self("IsNaN", x), self._number(0), x), self._number(low), self._number(1))

    def _rounded(self, x: str, scale: int) -> str:
        return self("Round", self("Mul", x, self._number(scale)))  # half to even, as NumPy does

    def _number(self, value: float) -> str:
        return self._constant(np.array(value, np.float32))

    def _integers(self, values: list[int]) -> str:
        return self._constant(np.array(values, np.int64))

    def _constant(self, value: np.ndarray) -> str:
        name = self._name("constant")
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def _name(self, what: str) -> str:
        self._count += 1
        return f"compact/{self._form.output}/{what}_{self._count}"

    def _declared(self, name: str) -> onnx.ValueInfoProto:
        return next(value for value in self._graph.output if value.name == name)
