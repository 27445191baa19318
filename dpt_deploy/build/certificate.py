"""Certificates: check that a parsed network computes in the requested precision.

A certificate is a plain JSON dictionary, stored in `details.certificate` of each engine:

    asked            the requested precision: fp16, bf16, fp32, int8 or fp8
    status           passed or failed
    reasons          why it failed; empty if it passed
    layers           computing, half, share: layers that compute on floating-point maps, and those in half precision
    flops            total, half, share: matrix FLOPs of a batch of one at `size`; products of eight-bit operands are
                     not in half precision
    size             height and width [pixels] of the network's input
    fp32_islands     each connected group of FP32 layers in a half-precision network: name, layers, flops
    eight_bits       only if asked for int8 or fp8: see `eight_bits`
    attention        status (passed, failed, not run), reason, blocks, layers, half, cast_up, decomposable, sums
    tensors          each input and output: name, mode, dtype, shape (-1 is dynamic)
    inspector        result of the engine inspector: status, reason, layers, half, eight_bits, fused_attention

`builder_process` adds profile, plan_bytes, builder, builder_version, flags and gpu. Half precision is FP16 or BF16.
Layers that only move data count with the type of the data; constants, casts, layers that quantize or dequantize, and
layers that compute shapes do not. In eight bits, everything else has to be in the type that the plan has for the rest.

Attention whose query, key and value are cast up from half precision (`cast_up`) is FP32 in the network, and so in
`flops` and `fp32_islands`. A builder that recognises the casts takes a fused kernel with half-precision inputs and FP32
sums.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.plan import EIGHT_BITS, PrecisionPlan
from . import eight_bits
from .flops import Work
from .layers import Layer, shorten

HALF = {"fp16": "HALF", "bf16": "BF16"}
MIN_HALF_SHARE = 0.5  # of the FLOPs of a half-precision network, unless the plan keeps more in FP32


def cast_up(layers: Sequence[Layer]) -> set[str]:
    """Names of the attention layers whose query, key and value are all cast from half precision to FP32."""
    producers = {name: layer for layer in layers for name in layer.outputs}

    def is_cast_up(name: str) -> bool:
        layer = producers.get(name)
        while layer is not None and layer.kind == "ELEMENTWISE" and layer.inputs:  # the scale
            layer = producers.get(layer.inputs[0])
        if layer is None or layer.kind != "CAST" or layer.dtype != "FLOAT":
            return False
        source = producers.get(layer.inputs[0])
        return source is not None and source.dtype in HALF.values()

    return {layer.name for layer in layers
            if layer.kind == "ATTENTION_INPUT" and layer.dtype == "FLOAT" and all(map(is_cast_up, layer.inputs[:3]))}


def certify(
    precision: str, layers: Sequence[Layer], work: Sequence[Work], modules: Mapping[str, str],
    tensors: Sequence[Mapping[str, Any]], size: tuple[int, int], opset: int, plan: PrecisionPlan | None = None,
) -> dict[str, Any]:
    """Make the certificate of a parsed network.

    Args:
        precision: The requested precision: fp16, bf16, fp32, int8 or fp8.
        layers: Layers of the network in execution order.
        work: Result of `flops.matrix_work` for the ONNX graph.
        modules: Result of `flops.modules_of` for the ONNX graph.
        tensors: Inputs and outputs of the network: name, mode, dtype, shape.
        size: Height and width of the input [pixels].
        opset: Opset of the ONNX graph.
        plan: The precision plan of the graph; None if it is unknown.
    """
    computing = _computing(layers)
    half = [layer for layer in computing if layer.dtype != "FLOAT"]
    types = {layer.node: layer.dtype for layer in layers if layer.kind != "ATTENTION_OUTPUT"}
    in_half = [item for item in work if types.get(item.node) in HALF.values()]
    narrow = {node for node, found in eight_bits.product_operands(layers).items() if found.eight_bits}
    rest = precision
    if precision in EIGHT_BITS:
        rest = plan.rest if plan else "fp16" if half else "fp32"
    certificate: dict[str, Any] = {
        "asked": precision, "status": "passed", "reasons": [],
        "layers": _share(len(half), len(computing), "computing"),
        "flops": _share(sum(item.flops for item in in_half if item.node not in narrow),
                        sum(item.flops for item in work), "total"),
        "size": list(size),
        "fp32_islands": _islands(computing, layers, work, modules, tensors) if half else [],
        "attention": _attention(rest, layers, work, modules, opset),
        "tensors": [dict(tensor) for tensor in tensors],
        "inspector": not_inspected("the engine has not been built yet"),
    }
    section = eight_bits.section(precision, layers, work, plan)
    if section is not None:
        certificate["eight_bits"] = section
    certificate["reasons"] = [
        *eight_bits.failures(precision, section, layers, work, plan),
        *_failures(rest, certificate, work, in_half, plan.fp32 if plan else None),
    ]
    certificate["status"] = "failed" if certificate["reasons"] else "passed"
    return certificate


def not_inspected(reason: str) -> dict[str, str]:
    """The certificate's "inspector" entry if the inspector was not run."""
    return {"status": "not run", "reason": reason}


def read_inspection(text: str) -> dict[str, Any]:
    """Summarise the JSON of an engine inspector (`get_engine_information`, detailed verbosity).

    Returns status, layers, half (layers with a half-precision output), eight_bits (layers with an input in INT8 or FP8)
    and fused_attention (fused attention layers, by name or type). Follows the documented schemas of TensorRT 10 and 11; never tested on the output of an engine.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        return not_inspected(f"the inspector's output is not valid ({type(error).__name__}: {error})")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return not_inspected("the engine was built without detailed profiling verbosity")
    fused = [layer for layer in layers if _is_fused_attention(layer)]
    half = [layer for layer in layers
            if any(name in json.dumps(layer.get("Outputs", [])) for name in ("FP16", "Half", "BF16", "BFloat16"))]
    narrow = [layer for layer in layers
              if any(name in json.dumps(layer.get("Inputs", [])) for name in ("Int8", "INT8", "FP8"))]
    return {"status": "passed", "layers": len(layers), "half": len(half), "eight_bits": len(narrow),
            "fused_attention": len(fused)}


def failure_message(file: str, certificate: Mapping[str, Any]) -> str:
    """The error message for a certificate that failed."""
    precision = certificate["asked"]
    options = f"--precision {precision} " + ("--calibrate DIR" if precision in EIGHT_BITS else "--opset 23")
    return (f"{file}: expected a network in {precision}, but {'; '.join(certificate['reasons'])}. Export the "
            f"checkpoint again with {options}, or with --precision fp32 if you want FP32.")


def _computing(layers: Sequence[Layer]) -> list[Layer]:
    """The layers that compute on maps, without those with constant inputs, which builders fold."""
    constant: set[str] = set()
    computing = []
    for layer in layers:
        if layer.kind == "CONSTANT" or (layer.inputs and constant.issuperset(layer.inputs)):
            constant.update(layer.outputs)
        elif layer.computes:
            computing.append(layer)
    return computing


def _share(part: int, whole: int, name: str) -> dict[str, Any]:
    return {name: whole, "half": part, "share": part / whole if whole else None}


def _failures(
    rest: str, certificate: Mapping[str, Any], work: Sequence[Work], in_half: Sequence[Work], fp32: Sequence[str] | None
) -> list[str]:
    """How the network differs from `rest`, the precision of what is not in eight bits; `fp32` is that of the plan."""
    failures = []
    if rest in HALF:
        in_fp32 = [item for item in work if item not in in_half]
        share = sum(item.flops for item in in_half) / max(1, sum(item.flops for item in work))
        others = [item for item in in_fp32 if not (item.is_attention and "attention" in (fp32 or ()))]
        modules = dict.fromkeys(item.module or "resize" for item in others)  # only the resize has no module
        unplanned = [module for module in modules
                     if fp32 is None or not any(f"{module}.".startswith(f"{name}.") for name in fp32)]
        if share < MIN_HALF_SHARE and (unplanned or not in_fp32):
            failures.append(f"{1 - share:.1%} of its matrix FLOPs are in FP32")
        elif unplanned and fp32 is not None:
            failures.append(f"these modules compute in FP32 but are not in the precision plan: {shorten(unplanned)}")
    elif certificate["layers"]["half"]:
        failures.append(f"{certificate['layers']['half']} layers compute in half precision")
    if certificate["attention"]["status"] == "failed":
        failures.append(certificate["attention"]["reason"])
    return failures


def _attention(
    precision: str, layers: Sequence[Layer], work: Sequence[Work], modules: Mapping[str, str], opset: int
) -> dict[str, Any]:
    """Compare the number of attention layers with the number of blocks of the backbone.

    For an attention layer that is not decomposable, the builder uses a fused kernel or fails.
    """
    blocks = {name.split(".")[2] for name in modules.values() if name.startswith("backbone.blocks.")}
    attention = [layer for layer in layers if layer.kind == "ATTENTION_INPUT"]
    raised = cast_up(layers)
    decomposable = [layer for layer in attention if layer.decomposable]
    sums = {"fp16" if layer.dtype == "HALF" else "fp32" for layer in attention}
    result: dict[str, Any] = {
        "status": "passed", "reason": "", "blocks": len(blocks), "layers": len(attention),
        "half": sum(layer.dtype != "FLOAT" for layer in attention), "cast_up": len(raised),
        "decomposable": len(decomposable), "sums": " and ".join(sorted(sums)),
    }
    if opset < 23 and not any(item.operator == "Attention" for item in work):
        result |= {"status": "not run", "reason": f"opset {opset} has no Attention operator; only the built engine "
                   "shows whether attention is fused"}
    elif len(attention) < len(blocks):
        result |= {"status": "failed", "reason": f"attention is not fused: the network has {len(attention)} attention "
                   f"layers for {len(blocks)} blocks"}
    elif precision in HALF and any(layer.dtype != "FLOAT" for layer in decomposable):
        result |= {"status": "failed", "reason": "attention is not fused: layers in half precision are decomposable"}
    elif any(layer.name in raised for layer in decomposable):
        result |= {"reason": f"{len(decomposable)} layers in FP32 are not fused: the build with fused attention on "
                   "query, key and value that are cast up failed"}
    elif decomposable:
        result |= {"reason": f"{len(decomposable)} layers in FP32 are not fused: no fused kernel supports FP32"}
    return result


def _islands(
    computing: Sequence[Layer], layers: Sequence[Layer], work: Sequence[Work], modules: Mapping[str, str],
    tensors: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Connected groups of FP32 layers, the one with the most FLOPs first."""
    island_of: dict[str, int] = {}
    members: dict[int, list[Layer]] = {}
    casts = [layer for layer in layers if layer.kind == "CAST" and layer.dtype == "FLOAT" and not layer.is_size]
    for layer in [*(layer for layer in computing if layer.dtype == "FLOAT"), *casts]:
        # The output of a cast to FP32 belongs to the island, its input does not.
        connected = layer.outputs if layer.kind == "CAST" else layer.inputs + layer.outputs
        joined = {island_of[name] for name in connected if name in island_of}
        index = min(joined, default=len(island_of) + len(members))
        members.setdefault(index, []).append(layer)
        for other in joined - {index}:
            members[index] += members.pop(other)
        for name, owner in island_of.items():
            if owner in joined:
                island_of[name] = index
        island_of |= dict.fromkeys(connected, index)
    flops = {item.node: item.flops for item in work}
    islands = []
    for group in members.values():
        counted = [layer for layer in group if layer.kind != "CAST"]
        if counted:
            island_flops = sum(flops.get(layer.node, 0) for layer in counted if layer.kind != "ATTENTION_OUTPUT")
            name = _island_name(group, modules, tensors)
            islands.append({"name": name, "layers": len(counted), "flops": island_flops})
    return sorted(islands, key=lambda island: (-island["flops"], -island["layers"], island["name"]))


def _island_name(group: Sequence[Layer], modules: Mapping[str, str], tensors: Sequence[Mapping[str, Any]]) -> str:
    """The modules of a group; without any, its inputs and outputs of the graph, or its layers."""
    own_modules = list(dict.fromkeys(
        f"attention after {modules[layer.node]}" if layer.kind.startswith("ATTENTION") else modules[layer.node]
        for layer in group if layer.node in modules
    ))
    used = {name for layer in group for name in layer.inputs + layer.outputs}
    ends = [f"{tensor['mode']} {tensor['name']}" for tensor in tensors if tensor["name"] in used]
    return shorten(own_modules or ends or [layer.name for layer in group])


def _is_fused_attention(layer: Mapping[str, Any]) -> bool:
    names = f"{layer.get('Name', '')} {layer.get('LayerType', '')} {layer.get('TacticName', '')}".lower()
    return "mha" in names or "attention" in names
