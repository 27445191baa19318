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
from ..core.onnx_nodes import Nodes

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
        _append(onnx, model.graph, form)
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


def _append(package: Any, graph: onnx.GraphProto, form: Form) -> None:
    """Add one form behind the map of its head."""
    helper, add, x = package.helper, Nodes(f"compact/{form.output}/"), form.head
    match form.name:
        case "float16":
            stored = x
        case "uint16-mm":
            stored = _millimetres(add, x)
        case "octahedral" | "octahedral16":
            stored = _rounded(add, _octahedral(add, _bounded(add, x, -1)), np.iinfo(form.dtype).max)
        case "uint8" | "uint16" if form.head == "normals":  # [-1, 1] -> [0, 1]
            half = add("Add", add("Mul", _bounded(add, x, -1), add.number(0.5)), add.number(0.5))
            stored = _rounded(add, half, np.iinfo(form.dtype).max)
        case _:  # int8 normals, uint8 and uint16 alpha
            low = -1.0 if np.dtype(form.dtype).kind == "i" else 0.0
            stored = _rounded(add, _bounded(add, x, low), np.iinfo(form.dtype).max)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(form.dtype))
    add("Cast", stored, output=form.output, to=kind)
    add.add_to(graph)
    # (N, H, W) or (N, H, W, C)
    declared = next(value for value in graph.output if value.name == form.head)
    axes = [dimension.dim_param or dimension.dim_value for dimension in declared.type.tensor_type.shape.dim][:3]
    axes += [form.channels] if form.channels > 1 else []
    graph.output.append(helper.make_tensor_value_info(form.output, kind, axes))


def _millimetres(add: Nodes, depth: str) -> str:
    rounded = add("Round", add("Mul", depth, add.number(1000)))
    at_least_one = add("Max", rounded, add.number(1))  # 0 stands for no depth
    # Both are False for NaN too.
    fits = add("And", add("Greater", depth, add.number(0)), add("LessOrEqual", rounded, add.number(65535)))
    return add("Where", fits, at_least_one, add.number(0))


def _octahedral(add: Nodes, normals: str) -> str:
    """(N, H, W, 3) to (N, H, W, 2) in [-1, 1]; see `core.compact`."""
    total = add("ReduceSum", add("Abs", normals), add.integers(-1), keepdims=1)
    x, y, z = add.split(add("Div", normals, add("Max", total, add.number(1e-12))), 3, axis=-1)
    behind = add("Less", z, add.number(0))
    folded = []
    for value, other in ((x, y), (y, x)):
        ahead = add("GreaterOrEqual", value, add.number(0))
        sign = add("Where", ahead, add.number(1), add.number(-1))
        fold = add("Mul", add("Sub", add.number(1), add("Abs", other)), sign)
        folded.append(add("Where", behind, fold, value))
    return add("Clip", add("Concat", *folded, axis=-1), add.number(-1), add.number(1))


def _bounded(add: Nodes, x: str, low: float) -> str:
    """Values from `low` to 1; 0 for NaN."""
    return add("Clip", add("Where", add("IsNaN", x), add.number(0), x), add.number(low), add.number(1))


def _rounded(add: Nodes, x: str, scale: int) -> str:
    return add("Round", add("Mul", x, add.number(scale)))  # half to even, as NumPy does
