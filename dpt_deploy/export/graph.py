"""Export a PyTorch module to ONNX."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import nn

from ..core.collector import collector_off
from ..core.contract import Contract, Graph, TensorSpec
from ..core.errors import BuildError, first_line
from ..core.files import replacing

TRANSPOSED = ".transposed"
ONNX_TYPES = {torch.float16: onnx.TensorProto.FLOAT16, torch.bfloat16: onnx.TensorProto.BFLOAT16,
              torch.float32: onnx.TensorProto.FLOAT}
FEW = 4  # random tensors of more elements are different
EXTERNAL_DATA_BYTES = 1_900_000_000  # protobuf messages are limited to 2 GiB


def export_graph(
    module: nn.Module, contract: Contract, path: Path, opset: int, metadata: dict[str, str]
) -> None:
    """Export a module as a model graph, with the dynamic axes of the contract.

    Args:
        module: The module, such as a result of `precision.typed`.
        contract: Gives the names, dtypes and shapes of inputs and outputs.
        path: The file to write. Weights of nearly 2 GB are written to `path` + ".data".
        opset: ONNX opset.
        metadata: Entries to add to the graph's metadata.

    Raises:
        BuildError: The exporter failed, or the graph does not pass `onnx.checker` or differs from the contract.
    """
    model = named_trace(module, contract, path.name, opset)
    set_weights(model, module)
    finish(model, path, "model", contract, metadata)


def named_trace(module: nn.Module, contract: Contract, what: str, opset: int) -> onnx.ModelProto:
    """The model graph of a module, whose weights have their names in the checkpoint and no values.

    Weights that the exporter transposed get the suffix ".transposed". Raises `BuildError`, which names the graph as
    `what`, if the exporter failed or dropped a weight.
    """
    (spec,) = contract.inputs("model").values()
    distinct = _distinct_copy(module)
    model = _trace(distinct, spec, list(contract.outputs("model")), what, opset)
    _name_weights(model, distinct)
    number_names(model.graph)
    return model


def _trace(module: nn.Module, spec: TensorSpec, outputs: list[str], what: str, opset: int) -> onnx.ModelProto:
    """What torch.onnx makes of a module. Raises `BuildError`, which names the module as `what`."""
    example = torch.zeros(2, *spec.shape[1:])  # the exporter would make a batch of 1 constant
    with warnings.catch_warnings(), _quiet(), collector_off(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                module, (example,), dynamo=True, opset_version=opset, input_names=[spec.name],
                output_names=outputs, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), verbose=False,
            ).model_proto
        except Exception as error:  # the exporter raises exceptions of many types
            raise BuildError(f"{what}: torch.onnx could not export it at opset {opset} ({first_line(error)}). "
                             "Use the torch and onnxscript versions in constraints.txt.") from error


def finish(model: onnx.ModelProto, path: Path, graph: Graph, contract: Contract, metadata: dict[str, str]) -> None:
    """Name the axes, add the metadata, and write the file."""
    _name_axes(model, contract, graph)
    for key, value in (metadata | {"contract": json.dumps(contract.to_json()), "graph": graph}).items():
        model.metadata_props.add(key=key, value=value)
    _strip_debug(model)
    save(model, path, graph, contract)


def save(model: onnx.ModelProto, path: Path, graph: Graph, contract: Contract) -> None:
    """Check and write a graph, atomically, with external data if it is near protobuf's size limit."""
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EXTERNAL_DATA_BYTES
    data = path.with_name(f"{path.name}.data")
    with replacing(path) as temporary:
        onnx.save(model, temporary, save_as_external_data=external, location=data.name)
        check(temporary, graph, contract)
        # A crash between the two writes is detected by the hashes in the manifest.
        if external:
            os.replace(temporary.with_name(data.name), data)
        else:
            data.unlink(missing_ok=True)


def check(path: Path, graph: Graph, contract: Contract) -> None:
    """Raise `BuildError` unless the file passes `onnx.checker` and has the contract's inputs and outputs."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BuildError(f"{path.name} does not pass onnx.checker: {first_line(error)}") from error
    model = onnx.load(path, load_external_data=False)
    received = {value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
                for value in (*model.graph.input, *model.graph.output)}
    expected = {spec.name: spec.dtype for spec in (contract.inputs(graph) | contract.outputs(graph)).values()}
    if list(received.items()) != list(expected.items()):
        raise BuildError(f"{path.name}: expected inputs and outputs {expected}, received {received}.")


def weight_name(name: str) -> str:
    """The name of a tensor in the checkpoint, without the prefixes of wrapping modules."""
    while name.startswith("model."):
        name = name.removeprefix("model.")
    return name


def _distinct_copy(module: nn.Module) -> nn.Module:
    """A copy of `module` with random weights that are all different.

    The exporter merges equal tensors, folds transposes and drops names. Distinct weights are not merged, and their
    content identifies them in the graph.
    """
    distinct = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(0)
    seen: set[bytes] = set()
    for tensor in distinct.state_dict().values():
        if not tensor.is_floating_point():
            continue
        tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        if tensor.numel() <= FEW:  # FP16 has 1536 numbers in this range, BF16 has 192
            while (digest := _digest(_raw_bytes(tensor), tensor.shape)) in seen:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            seen.add(digest)
    return distinct


def _name_weights(model: onnx.ModelProto, distinct: nn.Module) -> None:
    """Name the weights of a traced `_distinct_copy` and remove their values, in place."""
    by_digest: dict[bytes, str] = {}
    for name, tensor in _float_tensors(distinct).items():
        by_digest[_digest(_raw_bytes(tensor), tensor.shape)] = name
        if tensor.ndim == 2:
            by_digest[_digest(_raw_bytes(tensor.T), tensor.T.shape)] = f"{name}{TRANSPOSED}"
    renamed: dict[str, str] = {}
    for initializer in model.graph.initializer:
        name = by_digest.get(_digest(initializer.raw_data, initializer.dims))
        if name is not None:
            renamed[initializer.name] = initializer.name = name
            initializer.raw_data = b""
    found = {name.removesuffix(TRANSPOSED) for name in renamed.values()}
    if lost := [name for name in _float_tensors(distinct) if name not in found]:
        raise BuildError(
            f"the exporter dropped or changed {len(lost)} weights of the model ({', '.join(lost[:4])}). Use the "
            "torch and onnxscript versions in constraints.txt."
        )
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def set_weights(model: onnx.ModelProto, module: nn.Module) -> None:
    """Give the weights in a `named_trace` the values and types of those of `module`, in place."""
    weights = _float_tensors(module)
    for initializer in model.graph.initializer:
        name = initializer.name.removesuffix(TRANSPOSED)
        if name in weights:
            value = weights[name] if initializer.name == name else weights[name].T
            initializer.data_type = ONNX_TYPES[value.dtype]
            initializer.raw_data = _raw_bytes(value)


def number_names(graph: onnx.GraphProto) -> None:
    """Name nodes and tensors by operator and position, so that equal graphs have equal bytes, in place.

    Inputs, outputs and weights keep their names.
    """
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    described = {value.name: value for value in graph.value_info}
    used = dict.fromkeys(name for node in graph.node for name in node.input if name in tensors)
    constants = [name for name in used if "." not in name]  # those of weights have a dot
    outputs = {value.name for value in graph.output}
    names: dict[str, str] = {}
    for i, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{i}"
        names |= {name: f"{node.name}_{k}" if k else node.name
                  for k, name in enumerate(node.output) if name and name not in outputs}
    values = [described[name] for name in names if name in described]
    names |= {name: f"constant_{i}" for i, name in enumerate(constants)}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for entry in (*tensors.values(), *described.values()):
        entry.name = names.get(entry.name, entry.name)
    initializers = [tensors[name] for name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(initializers)
    graph.value_info.extend(values)


def _float_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The floating-point tensors of a module by their names in the checkpoint."""
    return {weight_name(name): tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def _digest(data: bytes, shape: Sequence[int]) -> bytes:
    return hashlib.sha256(data).digest() + bytes(str(list(shape)), "ascii")


def _raw_bytes(tensor: torch.Tensor) -> bytes:
    # NumPy has no bfloat16, so view as integers.
    bits = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.detach().contiguous().view(bits).numpy().tobytes()


def _name_axes(model: onnx.ModelProto, contract: Contract, graph: Graph) -> None:
    """Set the axes of inputs and outputs to the names and sizes in the contract, in place.

    Raises `BuildError` if an axis has another size, or is fixed although it is dynamic in the contract.
    """
    specs = contract.inputs(graph) | contract.outputs(graph)
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value or None for dim in dims]
        axes = specs[value.name].shape
        if len(shape) != len(axes) or any(size not in (None, axis) for size, axis in zip(shape, axes, strict=True)):
            raise BuildError(f"{value.name}: expected the shape {list(axes)} of the contract, received {shape} from "
                             "the exporter. Use the torch and onnxscript versions in constraints.txt.")
        for dim, axis in zip(dims, axes, strict=True):
            dim.Clear()
            if isinstance(axis, str):
                dim.dim_param = axis
            else:
                dim.dim_value = axis


def _strip_debug(model: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces, which contain paths of this machine."""
    for proto in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output,
                  *model.graph.initializer, model.graph):
        del proto.metadata_props[:]
        if hasattr(proto, "doc_string"):
            proto.doc_string = ""
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]


@contextlib.contextmanager
def _quiet():
    """Suppress the exporter's output, which is of no use to the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
