"""What you asked is what you got: what a network computes in, read from the network that the builder was given.

A certificate is a plain JSON dictionary, kept in `details["certificate"]` of each engine:

    asked            the precision asked for: fp16, bf16 or fp32
    status           passed or failed
    reasons          why it failed; empty when it passed
    layers           computing, half, share: layers that compute on floating-point maps, how many of them in half
    flops            total, half, share: matrix FLOPs of a batch of one at `size` [floating-point operations]
    size             height and width [pixels] that `flops` counts for: the network's own input
    fp32_islands     each connected group of FP32 layers inside a half-precision network: name, layers, flops
    attention        status (passed, failed, not run), reason, blocks, layers, half, decomposable
    tensors          each input and output: name, mode, dtype, shape (-1 is dynamic)
    inspector        what the built engine says of itself: status, reason, and where it ran layers and fused_attention

`build.engine` adds profile, plan_bytes, builder, builder_version, flags and gpu. Half is FP16 or BF16. A layer
that only moves data counts with the type of that data; constants, casts and whatever computes sizes do not count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .flops import Work

HALF = {"fp16": "HALF", "bf16": "BF16"}
FLOATS = ("HALF", "BF16", "FLOAT")
LEAST_HALF = 0.5  # a network that does less of its work in half, and not by plan, was not what was asked for
NAMES_SHOWN = 4


@dataclass(frozen=True)
class Layer:
    """One layer of a parsed network, without the builder's objects."""

    name: str
    kind: str
    """The builder's LayerType, such as MATRIX_MULTIPLY."""
    dtype: str
    """Type of its first output, such as HALF; for an attention, of its first input."""
    inputs: tuple[str, ...] = ()
    """Names of the tensors it reads."""
    outputs: tuple[str, ...] = ()
    is_size: bool = False
    """Whether it computes sizes and not maps."""
    decomposable: bool = False
    """For an attention: whether the builder may take it apart."""

    @property
    def computes(self) -> bool:
        """Whether it counts as a layer that computes on maps."""
        return self.dtype in FLOATS and not self.is_size and self.kind not in ("CONSTANT", "CAST", "SHAPE")

    @property
    def node(self) -> str:
        """Name of the ONNX node it was made from."""
        return self.name.removesuffix("_AttentionInput").removesuffix("_AttentionOutput")


def certify(
    asked: str, layers: Sequence[Layer], work: Sequence[Work], modules: Mapping[str, str],
    tensors: Sequence[Mapping[str, Any]], size: tuple[int, int], opset: int, plan: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The certificate of a network before it is built.

    `work` and `modules` come from `flops` for the ONNX graph that the network was parsed from; `plan` is
    what the precision plan keeps in FP32, None where that is not known.
    """
    computing = _computing(layers)
    half = [layer for layer in computing if layer.dtype != "FLOAT"]
    types = {layer.node: layer.dtype for layer in layers if layer.kind != "ATTENTION_OUTPUT"}
    in_half = [item for item in work if types.get(item.node) in HALF.values()]
    total = sum(item.flops for item in work)
    certificate = {
        "asked": asked,
        "status": "passed",
        "reasons": [],
        "layers": _share(len(half), len(computing), "computing"),
        "flops": _share(sum(item.flops for item in in_half), total, "total"),
        "size": list(size),
        "fp32_islands": _islands(computing, layers, work, modules, tensors) if half else [],
        "attention": _attention(asked, layers, work, modules, opset),
        "tensors": [dict(tensor) for tensor in tensors],
        "inspector": not_inspected("the engine is not built yet"),
    }
    certificate["reasons"] = _faults(certificate, [item for item in work if item not in in_half], plan)
    certificate["status"] = "failed" if certificate["reasons"] else "passed"
    return certificate


def not_inspected(reason: str) -> dict[str, str]:
    """The inspector's part where it was not run."""
    return {"status": "not run", "reason": reason}


def read_inspection(text: str) -> dict[str, Any]:
    """What an engine's inspector says (`get_engine_information`, JSON, detailed verbosity).

    Returns status, layers, half (layers with a half-precision output) and fused_attention (layers whose
    name or type says that they are a fused attention). Written from TensorRT's documentation, for the
    schemas of TensorRT 10 and 11; not yet run on an engine.
    """
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        return not_inspected(f"what the inspector says cannot be read ({type(error).__name__}: {error})")
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        return not_inspected("the engine was built without detailed profiling verbosity")
    fused = [layer for layer in layers if _is_fused_attention(layer)]
    half = [
        layer for layer in layers
        if any(word in json.dumps(layer.get("Outputs", [])) for word in ("FP16", "Half", "BF16", "BFloat16"))
    ]
    return {"status": "passed", "layers": len(layers), "half": len(half), "fused_attention": len(fused)}


def sentence(file: str, certificate: Mapping[str, Any]) -> str:
    """Why a network is refused and what to do, for a certificate that failed."""
    return (
        f"{file}: {certificate['asked']} was asked for, and that is not what the network computes: "
        f"{'; '.join(certificate['reasons'])}. Export the checkpoint again, with --precision {certificate['asked']} "
        "and --opset 23; use --precision fp32 if FP32 is what you want."
    )


def _computing(layers: Sequence[Layer]) -> list[Layer]:
    """The layers that compute on maps; those that only prepare constants are folded by any builder."""
    constant: set[str] = set()
    found = []
    for layer in layers:  # in the order of computation
        if layer.kind == "CONSTANT" or (layer.inputs and constant.issuperset(layer.inputs)):
            constant.update(layer.outputs)
        elif layer.computes:
            found.append(layer)
    return found


def _share(part: int, whole: int, name: str) -> dict[str, Any]:
    return {name: whole, "half": part, "share": part / whole if whole else None}


def _faults(certificate: Mapping[str, Any], in_fp32: Sequence[Work], plan: Sequence[str] | None) -> list[str]:
    """Where the network is not what was asked for."""
    asked = certificate["asked"]
    faults = []
    if asked in HALF:
        share = certificate["flops"]["share"] or 0.0
        layers = dict.fromkeys(item.module or "resize" for item in in_fp32)  # what belongs to no module resizes
        unasked = [layer for layer in layers if plan is None or not any(_within(layer, name) for name in plan)]
        if share < LEAST_HALF and (unasked or not in_fp32):
            faults.append(f"{1 - share:.1%} of its matrix FLOPs are in FP32")
        elif unasked and plan is not None:
            faults.append(f"the precision plan does not name these, and they compute in FP32: {_listed(unasked)}")
    elif certificate["layers"]["half"]:
        faults.append(f"{certificate['layers']['half']} layers compute in half")
    if certificate["attention"]["status"] == "failed":
        faults.append(certificate["attention"]["reason"])
    return faults


def _within(module: str, name: str) -> bool:
    """Whether `name` in a plan covers `module`."""
    return module == name or module.startswith(f"{name}.")


def _attention(
    asked: str, layers: Sequence[Layer], work: Sequence[Work], modules: Mapping[str, str], opset: int
) -> dict[str, Any]:
    """Attention layers against the backbone's blocks.

    A builder must have a fused kernel for an attention layer that it may not take apart, or refuse to build.
    """
    names = {name.partition("backbone.blocks.")[2].partition(".")[0] for name in modules.values()
             if name.startswith("backbone.blocks.")}
    found = [layer for layer in layers if layer.kind == "ATTENTION_INPUT"]
    operators = sum(item.operator == "Attention" for item in work)
    decomposable = [layer for layer in found if layer.decomposable]
    answer: dict[str, Any] = {
        "status": "passed", "reason": "", "blocks": len(names), "layers": len(found),
        "half": sum(layer.dtype != "FLOAT" for layer in found), "decomposable": len(decomposable),
    }
    if not operators and opset < 23:
        answer |= {"status": "not run", "reason": f"opset {opset} has no Attention operator: whether the builder fuses "
                   "its pattern can be seen in the built engine alone"}
    elif len(found) < len(names):
        answer |= {"status": "failed", "reason": f"{len(names)} blocks have {len(found)} attention layers: attention "
                   "is not fused"}
    elif asked in HALF and any(layer.dtype != "FLOAT" for layer in decomposable):
        answer |= {"status": "failed", "reason": "attention in half may be taken apart: it is not fused"}
    elif decomposable:
        answer |= {"reason": f"{len(decomposable)} in FP32, for which there is no fused kernel: the builder takes them "
                   "apart"}
    return answer


def _islands(
    computing: Sequence[Layer], layers: Sequence[Layer], work: Sequence[Work], modules: Mapping[str, str],
    tensors: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Connected groups of FP32 layers, the one with the most work first."""
    island_of: dict[str, int] = {}
    members: dict[int, list[Layer]] = {}
    passing = [layer for layer in layers if layer.kind == "CAST" and layer.dtype == "FLOAT" and not layer.is_size]
    for layer in [*(layer for layer in computing if layer.dtype == "FLOAT"), *passing]:
        # A cast to FP32 leads into an island, and its own input lies outside of it.
        touching = layer.outputs if layer.kind == "CAST" else layer.inputs + layer.outputs
        joined = {island_of[name] for name in touching if name in island_of}
        index = min(joined, default=len(island_of) + len(members))
        members.setdefault(index, []).append(layer)
        for other in joined - {index}:
            members[index] += members.pop(other)
        for name, owner in island_of.items():
            if owner in joined:
                island_of[name] = index
        island_of |= dict.fromkeys(touching, index)
    flops = {item.node: item.flops for item in work}
    islands = []
    for group in members.values():
        counted = [layer for layer in group if layer.kind != "CAST"]
        if counted:
            islands.append({
                "name": _island_name(group, modules, tensors),
                "layers": len(counted),
                "flops": sum(flops.get(layer.node, 0) for layer in counted if layer.kind != "ATTENTION_OUTPUT"),
            })
    return sorted(islands, key=lambda island: (-island["flops"], -island["layers"], island["name"]))


def _island_name(group: Sequence[Layer], modules: Mapping[str, str], tensors: Sequence[Mapping[str, Any]]) -> str:
    """The modules of a group; for one without weights the inputs and outputs of the graph that it touches."""
    own = list(dict.fromkeys(modules[layer.node] for layer in group if layer.node in modules))
    if own:
        return _listed(own)
    touched = {name for layer in group for name in layer.inputs + layer.outputs}
    ends = [f"{tensor['mode']} {tensor['name']}" for tensor in tensors if tensor["name"] in touched]
    return _listed(ends or [layer.name for layer in group])


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _is_fused_attention(layer: Mapping[str, Any]) -> bool:
    said = f"{layer.get('Name', '')} {layer.get('LayerType', '')} {layer.get('TacticName', '')}".lower()
    return "mha" in said or "attention" in said
