"""What a foreign ONNX graph takes and gives: names, types and shapes, stated, inferred and measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import BadInput, first_line, missing_package
from .describe import Description

if TYPE_CHECKING:
    import onnx

FLOATS = ("float32", "float16", "float64")  # not bfloat16, which ONNX Runtime does not give to NumPy
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPES = {"depth": FLOATS + INTEGERS, "normals": FLOATS, "alpha": (*FLOATS, "bool"), "alpha logits": FLOATS}
"""The types that an output may have, by head."""
LAYOUTS = {"depth": "(N, H, W) or (N, 1, H, W)", "normals": "(N, 3, H, W)", "alpha": "(N, H, W) or (N, 1, H, W)"}
SMALL = 1 << 12  # [bytes] tensors of up to this size, such as shapes, take part in shape inference
SHOWN = 8  # inputs or outputs that an error lists


@dataclass(frozen=True)
class Value:
    """What is known of an input or output."""

    name: str
    dtype: str | None
    """Such as float32; "not a tensor" for a sequence, map or optional value; None if it is not known."""
    shape: tuple[int | None, ...] | None
    """Sizes of the axes, None for an open one; None if not even their number is known."""

    def __str__(self) -> str:
        sizes = "of any shape"
        if self.shape is not None:
            sizes = f"[{', '.join('?' if size is None else str(size) for size in self.shape)}]"
        return f"{shown(self.name)} {sizes}" + ("" if self.dtype in (None, "float32") else f" {self.dtype}")


def onnx_package(why: str) -> Any:
    """The package onnx. Raises `MissingPackage`; `why` completes "onnx is needed to"."""
    try:
        import onnx
        import onnx.compose
        import onnx.shape_inference
    except ImportError as error:
        raise missing_package("onnx", "export", why) from error
    return onnx


def shown(text: str) -> str:
    """A name from a file as errors print it: without control characters, and not too long."""
    text = "".join(one if one.isprintable() else "?" for one in text[:61])
    return text if len(text) <= 60 else f"{text[:57]}..."


def inputs_of(model: onnx.ModelProto) -> list[Value]:
    """The inputs of a model that are not weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value_of(value) for value in model.graph.input if value.name not in weights]


def outputs_of(model: onnx.ModelProto) -> list[Value]:
    """The outputs of a model, as the file states them."""
    return [value_of(value) for value in model.graph.output]


def value_of(value: onnx.ValueInfoProto) -> Value:
    """What the file states of an input or output."""
    onnx, tensor = onnx_package("read a foreign model"), value.type.tensor_type
    if value.type.WhichOneof("value") not in ("tensor_type", None):
        return Value(value.name, "not a tensor", None)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else None
    except (KeyError, ValueError):
        dtype = f"type {tensor.elem_type}"
    shape = tuple(dim.dim_value or None for dim in tensor.shape.dim) if tensor.HasField("shape") else None
    return Value(value.name, dtype, shape)


def summary(model: onnx.ModelProto) -> str:
    """The inputs and outputs of a model in a few words, for errors."""
    return f"inputs: {listed(inputs_of(model))}; outputs: {listed(outputs_of(model))}"


def listed(values: Iterable[Any]) -> str:
    """The first few of some values, separated by commas."""
    values = [str(value) for value in values]
    more = [f"and {len(values) - SHOWN} more"] if len(values) > SHOWN else []
    return ", ".join([*values[:SHOWN], *more]) or "none"


def inferred_outputs(model: onnx.ModelProto, size: tuple[int, int]) -> list[Value]:
    """The outputs of a model for an input of `size` (H, W), by shape inference.

    The nodes are asked, not what the file states of its outputs: nothing checks that. What inference cannot tell, such
    as the outputs of operators of other projects, is taken from the file.
    """
    onnx, stated = onnx_package("infer the shapes of a foreign model"), outputs_of(model)
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for tensor in bare.graph.initializer:
        if len(tensor.raw_data) > SMALL:
            tensor.ClearField("raw_data")
    weights = {tensor.name for tensor in bare.graph.initializer}
    for value in bare.graph.input:
        if value.name not in weights:
            for dim, have in zip(value.type.tensor_type.shape.dim[2:], size, strict=True):
                dim.dim_value = have
    for value in bare.graph.output:
        value.type.ClearField("value")
    del bare.graph.value_info[:]
    try:
        found = outputs_of(onnx.shape_inference.infer_shapes(bare, data_prop=True))
    except Exception:  # inference is help, and its exceptions have no common base class; the first run decides
        return stated
    return [Value(said.name, one.dtype or said.dtype, _merged(one.shape, said.shape))
            for one, said in zip(found, stated, strict=True)]


def _merged(
    inferred: tuple[int | None, ...] | None, stated: tuple[int | None, ...] | None
) -> tuple[int | None, ...] | None:
    if inferred is None or stated is None or len(inferred) != len(stated):
        return stated if inferred is None else inferred
    return tuple(said if one is None else one for one, said in zip(inferred, stated, strict=True))


def session_of(path: Path) -> Any:
    """ONNX Runtime on a foreign file itself, on the CPU.

    Raises:
        BadInput: It cannot load the file.
        MissingPackage: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", "cpu", "run a foreign model, to see what its outputs are") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base class
        raise BadInput(f"{path}: expected a model that ONNX Runtime can load, received one that it cannot "
                       f"({first_line(error)}).") from error


def run(session: Any, image: np.ndarray, where: str) -> dict[str, Any]:
    """The outputs of a foreign file by name, in its order, for an input float32 (N, 3, H, W).

    Raises `BadInput`, which starts with `where`, if the computation fails.
    """
    names = [value.name for value in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, {session.get_inputs()[0].name: image}), strict=True))
    except Exception as error:  # its exceptions have no common base class
        raise BadInput(f"{where}: expected a model that runs on an input of {list(image.shape)}, received one that "
                       f"fails ({first_line(error)}). Correct input.size of the description, or export the model "
                       "again.") from error


def measured(name: str, array: Any) -> Value:
    """What an output was in a run."""
    if not isinstance(array, np.ndarray):
        return Value(name, "not a tensor", None)
    return Value(name, array.dtype.name, array.shape)


def check_output(head: str, value: Value, description: Description, size: tuple[int, int], where: str) -> None:
    """Check that an output can be the map of a head for a batch of 1. What is not known of the output passes.

    Args:
        head: depth, normals or alpha.
        value: The output, as inferred or as measured.
        description: What it means.
        size: Height and width of the input [pixels].
        where: The start of an error.

    Raises:
        BadInput: The type, the number of axes or channels, or a size does not fit.
    """
    def refuse(expected: str, advice: str) -> BadInput:
        return BadInput(f"{where}: expected {expected}, received the output {value}. {advice}")

    logits = head == "alpha" and description.outputs.alpha.values == "logits"
    name = "alpha logits" if logits else head
    if value.dtype is not None and value.dtype not in DTYPES[name]:
        advice = f"Correct outputs.{head}.output in the description, or add a Cast to the model."
        if value.dtype == "bfloat16":
            advice = "Add a Cast to float32 to the model."
        elif value.dtype in DTYPES[head]:
            advice = "A mask of bool is not logits: set outputs.alpha.values to probability in the description."
        raise refuse(f"{', '.join(DTYPES[name][:-1])} or {DTYPES[name][-1]} as {name}", advice)
    if value.shape is None:
        return
    channels = 3 if head == "normals" else 1
    ranks = (4,) if head == "normals" else (3, 4)
    if len(value.shape) not in ranks or (len(value.shape) == 4 and value.shape[1] not in (None, channels)) or \
            value.shape[0] not in (None, 1):
        raise refuse(f"{LAYOUTS[head]} as {head}", f"Correct outputs.{head}.output in the description.")
    if any(have not in (None, want) for have, want in zip(value.shape[-2:], size, strict=True)):
        raise refuse(f"{LAYOUTS[head]} of the input's size {size[0]}x{size[1]} as {head}",
                     "Resize it in the model, for example with a Resize node.")
