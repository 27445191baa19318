"""The eight-bit part of a certificate: which products of a network, and of a built engine, have eight-bit operands.

The section `eight_bits` of a certificate:

    type             the type asked for: int8 or fp8
    layers           layers of the network that multiply values in that type
    weights_only     layers with a weight stored in eight bits that multiply in floating point
    flops, share     matrix FLOPs in that type, and their fraction of all
    islands          modules that the plan quantizes and that compute in floating point: name, layers, flops, reason
    kernels          what the builder lists for the built engine: status, reason, products (of the network in eight
                     bits), eight_bits (of those, in kernels of eight-bit operands), share (of their FLOPs), islands
                     (modules of the others)

A product is in eight bits if both operands come from DEQUANTIZE layers, each of a constant or of a QUANTIZE layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.plan import EIGHT_BITS, PrecisionPlan, covers
from .flops import Work
from .layers import Layer, shorten

TYPES = {"INT8": "int8", "FP8": "fp8"}  # by the builder's name
PRODUCTS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")
MOVES = ("IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE")  # copy values, change none
QUANTIZED = ("Conv", "Gemm", "MatMul")  # operators that a plan quantizes if they have a weight
MIN_SHARE = 0.5  # of the FLOPs, unless the plan keeps more wide


@dataclass(frozen=True)
class Operands:
    """How the operands of a product are stored."""

    activation: str | None
    """int8 or fp8 if it is dequantized from that type, else None."""
    weight: str | None

    @property
    def eight_bits(self) -> str | None:
        """int8 or fp8 if both operands are in it, else None."""
        return self.activation if self.activation == self.weight else None

    @property
    def reason(self) -> str:
        """Why the product is not in eight bits."""
        if self.weight is None:
            return "not quantized" if self.activation is None else "the weight is not quantized"
        return "the activation is not quantized"


def product_operands(layers: Sequence[Layer]) -> dict[str, Operands]:
    """The operands of each product of a parsed network, by ONNX node."""
    producers = {name: layer for layer in layers for name in layer.outputs}

    def unmoved(name: str) -> Layer | None:
        layer = producers.get(name)
        while layer is not None and layer.kind in MOVES:
            layer = producers.get(layer.inputs[0])
        return layer

    def stored_in(name: str) -> str | None:
        dequantizer = unmoved(name)
        if dequantizer is None or dequantizer.kind != "DEQUANTIZE":
            return None
        source = unmoved(dequantizer.inputs[0])
        return TYPES.get(source.dtype) if source is not None and source.kind in ("CONSTANT", "QUANTIZE") else None

    found = {}
    for layer in layers:
        if layer.kind in PRODUCTS:
            first, second, *_ = (*map(stored_in, layer.inputs), None, None)
            found[layer.node] = Operands(first, second)
    return found


def section(
    precision: str, layers: Sequence[Layer], work: Sequence[Work], plan: PrecisionPlan | None
) -> dict[str, Any] | None:
    """The section `eight_bits` of a network's certificate. None if it neither has nor should have eight bits."""
    if precision not in EIGHT_BITS:
        return None
    operands = product_operands(layers)
    types = {node: found.eight_bits for node, found in operands.items()}
    total = sum(item.flops for item in work)
    flops = sum(item.flops for item in work if types.get(item.node) == precision)
    stored = sum(found.weight is not None and found.eight_bits is None for found in operands.values())
    return {
        "type": precision, "layers": sum(found == precision for found in types.values()), "weights_only": stored,
        "flops": flops, "share": flops / total if total else 0.0,
        "islands": _islands(precision, operands, work, plan),
        "kernels": {"status": "not run", "reason": "the engine has not been built yet"},
    }


def quantizing_layers(layers: Sequence[Layer]) -> int:
    """The number of layers that quantize or dequantize."""
    return sum("QUANTIZE" in layer.kind for layer in layers)


def failures(
    precision: str, found: Mapping[str, Any] | None, layers: Sequence[Layer], work: Sequence[Work],
    plan: PrecisionPlan | None,
) -> list[str]:
    """How a network differs from the eight bits that were asked for, or has some that were not. `found`: `section`."""
    if found is None:
        count = quantizing_layers(layers)
        return [f"{count} of its layers quantize to eight bits or dequantize from them"] if count else []
    name, operands = precision.upper(), product_operands(layers)
    others = [node for node, found in operands.items() if found.eight_bits not in (None, precision)]
    problems = [f"{len(others)} of its layers multiply in another eight-bit type"] if others else []
    unplanned = [island["name"] for island in found["islands"]]
    if plan is not None and plan.weights_only:
        if not found["weights_only"]:
            problems.append(f"no weight is stored in {name}")
        elif unplanned:
            problems.append(f"these modules have no weight in {name} but are not wide in the precision plan: "
                            f"{shorten(unplanned)}")
        if found["layers"]:
            problems.append(f"{found['layers']} of its layers multiply in {name}, and the precision plan quantizes "
                            "only weights")
        return problems
    if not found["layers"]:
        problems.append(f"no layer multiplies in {name}: all of its matrix FLOPs are in floating point")
    elif found["share"] < MIN_SHARE and (plan is None or unplanned):
        problems.append(f"only {found['share']:.1%} of its matrix FLOPs are in {name}")
    elif plan is not None and unplanned:
        problems.append(f"these modules compute in floating point but are not wide in the precision plan: "
                        f"{shorten(unplanned)}")
    narrow = dict.fromkeys(item.module for item in work if plan is not None and _is_wide(item.module, plan)
                           and item.node in operands and operands[item.node].eight_bits)
    if narrow:
        problems.append(f"these modules compute in {name} but are wide in the precision plan: {shorten(list(narrow))}")
    return problems


@dataclass(frozen=True)
class Kernel:
    """A kernel of a built engine, as the builder lists it."""

    name: str
    operands: tuple[str, ...]
    """Builder's names of the types of the inputs and constants, such as Int8, in their order."""
    nodes: tuple[str, ...]
    """The ONNX nodes that it computes."""


def read_kernels(log: str) -> list[Kernel]:
    """The kernels that a builder lists in its verbose log. Empty if the log has no list in a known form.

    TensorRT-RTX 1.7 lists them without a GPU. They are those of the engine file. What it makes of them when the engine
    first runs on a GPU is not in the list.
    """
    kernels = []
    for line in log.splitlines():
        found = re.match(r"\s*Name: (\S+), LayerType: \w+, Inputs: \[(.*)\], Outputs: \[", line)
        if found:
            nodes = re.findall(r"\[ONNX Layer: ([^\]]+)\]", line)
            kernels.append(Kernel(found[1], tuple(re.findall(r"Datatype: (\w+)", found[2])), tuple(nodes)))
    return kernels


def compare_kernels(
    precision: str, kernels: Sequence[Kernel], layers: Sequence[Layer], work: Sequence[Work]
) -> dict[str, Any]:
    """The entry `kernels`: how much of the eight-bit work of a network is in kernels with eight-bit operands."""
    if not any(kernel.nodes for kernel in kernels):
        return {"status": "not run", "reason": "the builder lists no kernels in a form that is known"}
    wanted = {node for node, found in product_operands(layers).items() if found.eight_bits == precision}
    if not wanted:
        return {"status": "not run", "reason": "the network multiplies no values in eight bits"}
    having = {node for kernel in kernels if [name.lower() for name in kernel.operands].count(precision) > 1
              for node in kernel.nodes if node in wanted}
    flops, found = _flops(wanted, work), _flops(having, work)
    others = dict.fromkeys(item.module or item.node for item in work if item.node in wanted - having)
    entry = {"status": "passed", "reason": "", "products": len(wanted), "eight_bits": len(having),
             "share": found / flops if flops else None, "islands": list(others)}
    if found < MIN_SHARE * flops:
        entry |= {"status": "failed", "reason": f"the builder made kernels in {precision.upper()} for only "
                  f"{found / flops:.1%} of the work that the network has in {precision.upper()}"}
    return entry


def _islands(
    precision: str, operands: Mapping[str, Operands], work: Sequence[Work], plan: PrecisionPlan | None
) -> list[dict[str, Any]]:
    """The modules that should be quantized and are not, the one with the most FLOPs first."""
    weights_only = plan is not None and plan.weights_only
    islands: dict[str, dict[str, Any]] = {}
    for item in work:
        if item.operator not in QUANTIZED or item.module is None or item.is_attention or _is_wide(item.module, plan):
            continue
        stored = operands.get(item.node, Operands(None, None))
        if precision in (stored.weight if weights_only else None, stored.eight_bits):
            continue
        island = islands.setdefault(item.module, {"name": item.module, "layers": 0, "flops": 0})
        island["layers"] += 1
        island["flops"] += item.flops
        island["reason"] = stored.reason
    return sorted(islands.values(), key=lambda island: (-island["flops"], island["name"]))


def _is_wide(module: str | None, plan: PrecisionPlan | None) -> bool:
    return module is not None and plan is not None and covers(plan.wide, module)


def _flops(nodes: Iterable[str], work: Sequence[Work]) -> int:
    return sum(item.flops for item in work if item.node in nodes)
