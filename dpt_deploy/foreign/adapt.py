"""Put the contract's names, ranges and axes around a foreign ONNX model, as nodes of the graph."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from ..core.contract import MAX_INPUT_SIZE, Contract
from ..core.errors import BadInput, first_line
from ..core.onnx_nodes import Nodes, surround
from .describe import DAVID, EXAMPLE, Description, Found
from .graph import Value, check_output, inferred_outputs, inputs_of, listed, onnx_package, outputs_of, shown, summary

if TYPE_CHECKING:
    import onnx

OLDEST_OPSET = 13  # the first whose Unsqueeze takes its axes as an input
OLDEST_IR = 8
"""Of adapted models. Before IR 4, weights were inputs as well."""
PREFIX = "foreign/"
FLOAT = 1  # onnx.TensorProto.FLOAT
SMALLEST_ALPHA = 1e-7
"""Probabilities are kept this far from 0 and 1, so that their logits are finite."""


def guess(model: onnx.ModelProto) -> Found | None:
    """The preset whose inputs and outputs a model has, or None. Shapes say nothing of colours and ranges: a guess."""
    inputs, outputs = inputs_of(model), outputs_of(model)
    if len(inputs) != 1 or len(outputs) != 3 or any(value.shape is None for value in (*inputs, *outputs)):
        return None
    sizes = [value.shape[1:] for value in (*inputs, *outputs)]
    if sizes[0] == (3, 512, 512) and len(sizes[1]) in (2, 3) and sizes[2][:1] in ((3,), (None,)):
        return Found(DAVID, "the shapes of the graph, which are those of david", guessed=True)
    return None


def adapt(model: onnx.ModelProto, description: Description, name: str) -> tuple[onnx.ModelProto, Contract]:
    """A model graph of our contract around a foreign model.

    The input becomes normalised RGB (N, 3, h, w); the outputs become depth (N, 1, h, w), normals (N, 3, h, w) and
    alpha_logits (N, 1, h, w). The nodes of the foreign model keep their names, with a prefix.

    Args:
        model: The foreign model, with its weights.
        description: What its input and outputs mean.
        name: How errors call the model.

    Returns:
        The new model, and its contract. A batch that the foreign graph fixes stays fixed.

    Raises:
        BadInput: The graph does not fit the description.
        MissingPackage: onnx is not installed.
    """
    onnx = onnx_package("adapt a foreign model")
    source = _input(model, name)
    size = _size(source, description, name)
    contract = description.contract(size)
    opset = opset_of(model)
    if opset < OLDEST_OPSET:
        raise BadInput(f"{name}: expected opset {OLDEST_OPSET} or newer, received {opset}. Convert it with "
                       "onnx.version_converter.convert_version(model, 20), or export it again.")
    names = output_names(model, description, name)
    inferred = {value.name: value for value in inferred_outputs(model, size)}
    for head, output in names.items():
        check_output(head, inferred[output], description, size, name)
    # Many exports state an open batch and have a constant 1 inside.
    fixed = any(value.shape and value.shape[0] for value in (source, *(inferred[output] for output in names.values())))
    batch = 1 if fixed else "batch"
    model = onnx.compose.add_prefix(model, PREFIX)
    model.ir_version = max(model.ir_version, OLDEST_IR)
    before, after = Nodes("adapter/before/"), Nodes("adapter/after/")
    if description.input.colours == "bgr":
        before("Gather", "image", before.integers(2, 1, 0), output=PREFIX + source.name, axis=1)
    else:
        before("Identity", "image", output=PREFIX + source.name)
    for head, value in names.items():
        _adapt_head(after, head, PREFIX + value, description)
    graph = model.graph
    surround(graph, before, after)
    del graph.value_info[:], model.metadata_props[:]
    graph.input.append(onnx.helper.make_tensor_value_info("image", FLOAT, [batch, 3, *size]))
    graph.output.extend(onnx.helper.make_tensor_value_info(spec.name, FLOAT, [batch, *spec.shape[1:]])
                        for spec in contract.outputs("model").values())
    for key, text in {"contract": json.dumps(contract.to_json()), "graph": "model"}.items():
        model.metadata_props.add(key=key, value=text)
    try:
        onnx.checker.check_model(model)
    except Exception as error:  # of the checker, or of protobuf; they have no common base class
        raise BadInput(f"{name}: expected a valid ONNX graph, received one that is not ({first_line(error)}). Export "
                       "the model again.") from error
    return model, contract


def needs_description(name: str, model: onnx.ModelProto) -> BadInput:
    """The error for a model that nothing describes."""
    stem = name.rpartition("/")[2].removesuffix(".onnx")
    return BadInput(f"{name}: expected a description of this model, received none. It has {summary(model)}. Write "
                    f"{stem}.yaml beside it, for example:\n{EXAMPLE}")


def output_names(model: onnx.ModelProto, description: Description, name: str) -> dict[str, str]:
    """The names of the graph's outputs by head. Raises `BadInput` for one that the graph does not have."""
    have, found = [value.name for value in model.graph.output], {}
    for head in description.outputs.heads:
        wanted = getattr(description.outputs, head).output
        if isinstance(wanted, int) and wanted < len(have):
            wanted = have[wanted]
        if wanted not in have:
            raise BadInput(f"{name}: expected the output {wanted!r} for {head}, as the description says, received a "
                           f"graph with {listed(map(shown, have))}. Correct outputs.{head}.output.")
        found[head] = wanted
    return found


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses; 0 if it uses none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _adapt_head(add: Nodes, head: str, value: str, description: Description) -> None:
    """From the foreign output `value` to the contract's output of a head, in float32."""
    value = add("Cast", value, to=FLOAT)
    if head == "depth":
        depth = description.outputs.depth
        factor = depth.metres if depth.kind == "metric" else 1.0 if depth.larger == "farther" else -1.0
        add("Mul", _one_channel(add, value), add.number(factor), output="depth")
    elif head == "normals":
        normals = description.outputs.normals
        signs = add.constant(np.array(normals.signs, np.float32).reshape(3, 1, 1))
        add("Mul", add("Gather", value, add.integers(*normals.order), axis=1), signs, output="normals")
    elif description.outputs.alpha.values == "logits":
        add("Identity", _one_channel(add, value), output="alpha_logits")
    else:
        probability = add("Clip", _one_channel(add, value), add.number(SMALLEST_ALPHA), add.number(1 - SMALLEST_ALPHA))
        rest = add("Sub", add.number(1), probability)
        add("Sub", add("Log", probability), add("Log", rest), output="alpha_logits")


def _one_channel(add: Nodes, value: str) -> str:
    """(N, H, W) or (N, 1, H, W) -> (N, 1, H, W): a reshape that keeps N and the last two axes."""
    shape = add("Shape", value)
    first = add("Slice", shape, add.integers(0), add.integers(1))
    last = add("Slice", shape, add.integers(-2), add.integers(1 << 30))
    return add("Reshape", value, add("Concat", first, add.integers(1), last, axis=0))


def _input(model: onnx.ModelProto, name: str) -> Value:
    """The one input, float32 (N, 3, H, W)."""
    inputs = inputs_of(model)
    shape = inputs[0].shape if inputs else None
    fits = len(inputs) == 1 and shape is not None and len(shape) == 4 and shape[1] in (3, None)
    if fits and shape[0] not in (1, None):
        raise BadInput(f"{name}: expected a model for a batch of any size, or of 1, received one whose batch is fixed "
                       f"to {shape[0]}. Export the model again with a dynamic batch.")
    if not fits or inputs[0].dtype != "float32":
        raise BadInput(f"{name}: expected one float32 input (N, 3, H, W), received {summary(model)}.")
    return inputs[0]


def _size(source: Value, description: Description, name: str) -> tuple[int, int]:
    fixed, stated = source.shape[2:], description.input.size
    if stated is None and None in fixed:
        raise BadInput(f"{name}: expected input.size in the description, because the graph takes any height and width.")
    size = tuple(stated or fixed)
    if not all(1 <= one <= MAX_INPUT_SIZE for one in size):
        raise BadInput(f"{name}: expected an input of 1 to {MAX_INPUT_SIZE} pixels a side, received "
                       f"{size[0]}x{size[1]}.")
    if any(have is not None and have != want for have, want in zip(fixed, size, strict=True)):
        raise BadInput(f"{name}: expected an input of {size[0]}x{size[1]}, as the description says, received a graph "
                       f"for {'x'.join(str(one or 'any') for one in fixed)}. Correct input.size.")
    return size
