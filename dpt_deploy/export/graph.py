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
from pathlib import Path

import onnx
import torch
from torch import nn

from ..core.contract import Contract, Graph, TensorSpec
from ..core.errors import BuildError, first_line
from ..core.files import replacing

EXTERNAL_DATA_BYTES = 1_900_000_000  # protobuf messages are limited to 2 GiB


def export_graph(
    module: nn.Module, graph: Graph, contract: Contract, path: Path, opset: int, metadata: dict[str, str]
) -> None:
    """Export a module to ONNX, with the dynamic axes of the contract.

    Args:
        module: Result of `precision.typed` for the model graph, of `precision.typed_frame` for the frame graph.
        graph: model or frame.
        contract: Gives the names, dtypes and shapes of inputs and outputs.
        path: The file to write. Weights of nearly 2 GB are written to `path` + ".data".
        opset: ONNX opset.
        metadata: Entries to add to the graph's metadata.

    Raises:
        BuildError: The exporter failed, or the graph does not pass `onnx.checker` or differs from the contract.
    """
    (spec,) = contract.inputs(graph).values()
    distinct = _distinct_copy(module)
    model = trace(distinct, [spec], list(contract.outputs(graph)), path.name, opset)
    _restore_weights(model, distinct, module)
    finish(model, path, graph, contract, metadata)


def trace(module: nn.Module, inputs: list[TensorSpec], outputs: list[str], what: str, opset: int) -> onnx.ModelProto:
    """What torch.onnx makes of a module. Raises `BuildError`, which names the module as `what`."""
    # The exporter would make a batch of 1 constant, and equal height and width one axis.
    sizes = {"batch": 2, "height": 96, "width": 128}
    examples = [torch.zeros([sizes.get(axis, axis) for axis in spec.shape], dtype=getattr(torch, spec.dtype))
                for spec in inputs]
    dynamic = tuple({i: torch.export.Dim.DYNAMIC for i, axis in enumerate(spec.shape) if isinstance(axis, str)}
                    for spec in inputs)
    if len(inputs) > 1:  # forward(frame, *maps)
        dynamic = (dynamic[0], dynamic[1:])
    with warnings.catch_warnings(), _quiet(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return torch.onnx.export(
                module, tuple(examples), dynamo=True, opset_version=opset, input_names=[spec.name for spec in inputs],
                output_names=outputs, dynamic_shapes=dynamic, verbose=False,
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
    for tensor in distinct.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return distinct


def _restore_weights(model: onnx.ModelProto, distinct: nn.Module, module: nn.Module) -> None:
    """Give each initializer its name in the checkpoint and the values of `module`, in place.

    Weights that the exporter transposed get the suffix ".transposed". Raises `BuildError` if the graph lacks a weight.
    """
    by_digest: dict[bytes, tuple[str, torch.Tensor]] = {}
    values = module.state_dict()
    for name, tensor in distinct.state_dict().items():
        if not tensor.is_floating_point():
            continue
        by_digest[_digest(tensor)] = (weight_name(name), values[name])
        if tensor.ndim == 2:
            by_digest[_digest(tensor.T)] = (f"{weight_name(name)}.transposed", values[name].T)
    renamed: dict[str, str] = {}
    for initializer in model.graph.initializer:
        digest = hashlib.sha256(initializer.raw_data).digest() + bytes(str(list(initializer.dims)), "ascii")
        if digest in by_digest:
            name, value = by_digest[digest]
            initializer.raw_data = _raw_bytes(value)
            renamed[initializer.name] = initializer.name = name
    restored = {name.removesuffix(".transposed") for name in renamed.values()}
    if lost := [name for name, _ in by_digest.values() if name.removesuffix(".transposed") not in restored]:
        raise BuildError(
            f"the exporter dropped or changed {len(lost)} weights of the model ({', '.join(lost[:4])}). Use the "
            "torch and onnxscript versions in constraints.txt."
        )
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(_raw_bytes(tensor)).digest() + bytes(str(list(tensor.shape)), "ascii")


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
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
