"""Model -> ONNX."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import logging
import os
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

from ..core.contract import Contract, Graph
from ..core.errors import BuildError
from ..core.files import replacing

OPSETS = (23, 20)
EXTERNAL_DATA_BYTES = 1_900_000_000  # protobuf ends at 2 GiB


def export_graph(
    module: nn.Module, graph: Graph, contract: Contract, path: Path, opset: int, metadata: dict[str, str]
) -> None:
    """Export `module` as the model or the frame graph of `contract` to `path`.

    Dynamic axes are those of the contract. Graphs of nearly 2 GB keep their weights beside them in
    `path` + ".data". Raises `BuildError` when the graph does not pass `onnx.checker` in full mode or
    its inputs and outputs are not the contract's.
    """
    (name, spec), = contract.inputs(graph).items()
    # An example batch of 1 would be taken for a constant; so would equal height and width.
    sizes = {"batch": 2, "height": 96, "width": 128}
    shape = [sizes.get(axis, axis) for axis in spec.shape]
    example = torch.zeros(shape, dtype=getattr(torch, spec.dtype))
    dynamic = {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(spec.shape) if isinstance(axis, str)}
    outputs = contract.outputs(graph)
    twin = _distinct_twin(module)
    with warnings.catch_warnings(), _quiet(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            twin, (example,), dynamo=True, opset_version=opset, input_names=[name],
            output_names=list(outputs), dynamic_shapes=(dynamic,), verbose=False,
        )
    model = program.model_proto
    _restore_weights(model, twin, module)
    _name_axes(model, contract, graph)
    for key, value in (metadata | {"contract": json.dumps(contract.to_json()), "graph": graph}).items():
        model.metadata_props.add(key=key, value=value)
    _strip_debug(model)
    save(model, path, graph, contract)


def save(model: onnx.ModelProto, path: Path, graph: Graph, contract: Contract) -> None:
    """Write a graph that passes `check`, atomically; with external data when it nears protobuf's limit."""
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EXTERNAL_DATA_BYTES
    data = path.with_name(f"{path.name}.data")
    with replacing(path) as temporary:
        onnx.save(model, temporary, save_as_external_data=external, location=data.name)
        check(temporary, graph, contract)
        # A crash between the two is seen: the manifest has the hash of each.
        if external:
            os.replace(temporary.with_name(data.name), data)
        else:
            data.unlink(missing_ok=True)


def check(path: Path, graph: Graph, contract: Contract) -> None:
    """Raise `BuildError` unless the file passes the full checker and has the contract's inputs and outputs."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except onnx.checker.ValidationError as error:
        raise BuildError(f"{path.name} does not pass onnx.checker: {error}") from error
    model = onnx.load(path, load_external_data=False)
    have = {value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
            for value in (*model.graph.input, *model.graph.output)}
    want = {spec.name: spec.dtype for spec in (contract.inputs(graph) | contract.outputs(graph)).values()}
    if list(have.items()) != list(want.items()):
        raise BuildError(f"{path.name}: expected inputs and outputs {want}, received {have}.")


def weight_name(name: str) -> str:
    """A tensor's name in the checkpoint, from its name inside wrapping modules."""
    while name.startswith("model."):
        name = name.removeprefix("model.")
    return name


def _distinct_twin(module: nn.Module) -> nn.Module:
    """A copy of `module` whose weights are all different random numbers.

    The exporter merges equal tensors, folds transposes and drops names. With distinct weights nothing
    merges, and afterwards every tensor of the graph can be told by its content.
    """
    twin = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(0)
    for tensor in twin.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return twin


def _restore_weights(model: onnx.ModelProto, twin: nn.Module, module: nn.Module) -> None:
    """Give each initializer the checkpoint's name and the values of `module`, in place.

    A weight that the exporter transposed is called NAME + ".transposed". Raises `BuildError` for a
    weight that is in the graph in no recognised form.
    """
    known: dict[bytes, tuple[str, torch.Tensor]] = {}
    values = module.state_dict()
    for name, tensor in twin.state_dict().items():
        if not tensor.is_floating_point():
            continue
        known[_digest(tensor)] = (weight_name(name), values[name])
        if tensor.ndim == 2:
            known[_digest(tensor.T)] = (f"{weight_name(name)}.transposed", values[name].T)
    renamed: dict[str, str] = {}
    for initializer in model.graph.initializer:
        found = known.get(hashlib.sha256(initializer.raw_data).digest() + bytes(str(list(initializer.dims)), "ascii"))
        if found is None:
            continue
        name, value = found
        initializer.raw_data = _raw(value)
        renamed[initializer.name] = initializer.name = name
    restored = {name.removesuffix(".transposed") for name in renamed.values()}
    if lost := [name for name, _ in known.values() if name.removesuffix(".transposed") not in restored]:
        raise BuildError(
            f"the ONNX exporter changed {len(lost)} weights beyond recognition ({', '.join(lost[:4])}); "
            "the graph cannot be trusted. Use the torch and onnxscript versions of constraints.txt."
        )
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(_raw(tensor)).digest() + bytes(str(list(tensor.shape)), "ascii")


def _raw(tensor: torch.Tensor) -> bytes:
    # NumPy has no bfloat16: read the bits.
    bits = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.detach().contiguous().view(bits).numpy().tobytes()


def _name_axes(model: onnx.ModelProto, contract: Contract, graph: Graph) -> None:
    """Give every axis of inputs and outputs the contract's name or size.

    Raises `BuildError` for an axis that has another size, or a size where the contract leaves it open.
    """
    specs = contract.inputs(graph) | contract.outputs(graph)
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value or None for dim in dims]
        want = specs[value.name].shape
        if len(shape) != len(want) or any(size not in (None, axis) for size, axis in zip(shape, want, strict=True)):
            raise BuildError(f"the exporter gave {value.name} the shape {shape}, expected {list(want)}: the graph "
                             "would not take what the contract promises.")
        for dim, axis in zip(dims, want, strict=True):
            dim.Clear()
            if isinstance(axis, str):
                dim.dim_param = axis
            else:
                dim.dim_value = axis


def _strip_debug(model: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces: they carry paths of the machine that exported."""
    for holder in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output,
                   *model.graph.initializer, model.graph):
        del holder.metadata_props[:]
        if hasattr(holder, "doc_string"):
            holder.doc_string = ""
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]


@contextlib.contextmanager
def _quiet():
    """Hold back the exporter's chatter; it says nothing that a user can act on."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
