"""The model graphs of a checkpoint: in half precision, and in FP32 from the same trace.

torch.onnx takes much of the time of a small export, and its graphs of one model in FP16 and in FP32 differ in types and
casts alone.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from ..core.contract import Contract
from ..core.manifest import PrecisionPlan
from ..model import MultiTaskDPT
from .graph import finish, named_trace, number_names, set_weights
from .precision import typed


class Network:
    """Exports the model graphs of one model. The FP32 graph takes no trace if the FP16 graph was exported before it."""

    def __init__(self, model: MultiTaskDPT, contract: Contract, opset: int) -> None:
        """`model` is float32; `contract` gives the names, dtypes and shapes of inputs and outputs."""
        self.model, self.contract, self.opset = model, contract, opset
        self._in_fp16: onnx.ModelProto | None = None  # without the values of the weights

    def export(self, plan: PrecisionPlan, path: Path, metadata: dict[str, str]) -> None:
        """Write the graph of a plan.

        Args:
            plan: The precision plan.
            path: The file to write. Weights of nearly 2 GB are written to `path` + ".data".
            metadata: Entries to add to the graph's metadata.

        Raises:
            BadInput: The plan has a name that the model does not have.
            BuildError: The exporter failed, or the graph does not pass `onnx.checker` or differs from the contract.
        """
        module = typed(self.model, plan)
        if plan.precision == "fp32" and self._in_fp16 is not None:
            graph = _copy(self._in_fp16)
            _widen(graph)
        else:
            graph = named_trace(module, self.contract, path.name, self.opset)
            # BF16 graphs replace operators.
            if plan.precision == "fp16" and not (_has_rounded_constants(graph) or _has_rounded_buffers(module)):
                self._in_fp16 = _copy(graph)
        set_weights(graph, module)
        finish(graph, path, "model", self.contract, metadata)


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _has_rounded_buffers(module: nn.Module) -> bool:
    """Whether a module computes with FP16 numbers that are no weights, which the exporter may have folded into FP32."""
    weights = module.state_dict()
    return any(buffer.dtype is torch.float16 for name, buffer in module.named_buffers() if name not in weights)


def _has_rounded_constants(model: onnx.ModelProto) -> bool:
    """Whether a traced graph holds FP16 numbers other than weights, whose FP32 values are unknown."""
    tensors = [*model.graph.initializer, *(attribute.t for node in model.graph.node for attribute in node.attribute)]
    return any(tensor.data_type == TensorProto.FLOAT16 and tensor.raw_data for tensor in tensors)


def _widen(model: onnx.ModelProto) -> None:
    """Make FP32 of FP16 in a traced graph, and remove the casts that have nothing left to do, in place."""
    graph = model.graph
    for value in graph.value_info:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:  # of weights: `set_weights` gives them their values
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.data_type = TensorProto.FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    _remove_idle_casts(graph)
    number_names(graph)


def _remove_idle_casts(graph: onnx.GraphProto) -> None:
    """Remove the casts from a type to itself, in place."""
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    names: dict[str, str] = {}
    removed = set()
    for node in graph.node:  # in the order of the graph, so a chain of casts ends in its first source
        if node.op_type != "Cast" or types.get(node.input[0]) != helper.get_node_attr_value(node, "to"):
            continue
        source, result = names.get(node.input[0], node.input[0]), node.output[0]
        removed.add(result)
        if result in outputs:
            names = {name: result if to == source else to for name, to in names.items()} | {source: result}
        else:
            names[result] = source
    kept = [node for node in graph.node if node.output[0] not in removed]
    for node in kept:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    del graph.node[:]
    graph.node.extend(kept)
    made = {name for node in kept for name in node.output}
    described = [value for value in graph.value_info if value.name in made - outputs]
    del graph.value_info[:]
    graph.value_info.extend(described)
