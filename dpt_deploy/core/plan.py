"""Precisions, and the plan of what a graph computes in which of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from pydantic import PlainSerializer, TypeAdapter, WrapValidator

Precision = Literal["fp16", "bf16", "fp32", "int8", "fp8"]
EIGHT_BITS = ("int8", "fp8")
"""The precisions whose matrix products have eight-bit operands."""


@dataclass(frozen=True)
class PrecisionPlan:
    """The arithmetic precision of each part of a graph."""

    precision: Precision = "fp16"
    """The type of everything not listed in `fp32`. In eight bits: the type of the operands of matrix products."""
    fp32: tuple[str, ...] = ("activations", "resize")
    """Parts kept in FP32: module names such as decoder.fusion.2, or residual, attention, activations, resize."""
    rest: Literal["fp32", "fp16"] = "fp32"
    """Eight bits only: the type of everything but the quantized products. Norms, softmax, attention's products of
    activations, additions and resizing are never in eight bits."""
    wide: tuple[str, ...] = ()
    """Eight bits only: modules that are not quantized, such as decoder.reassemble.0; they compute in `rest`."""
    weights_only: bool = False
    """Eight bits only: weights are stored in eight bits and activations are not quantized."""
    weight_bits: Literal[8, 7] = 8
    """int8 only: 7 halves the range of the weights. On processors without VNNI, sums of two products of full range
    saturate in 16 bits."""
    unknown: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """Keys of a newer version in the manifest that it was read from. They are written again."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of the known fields."""
        value = {"precision": self.precision, "fp32": list(self.fp32)}
        if self.precision in EIGHT_BITS:
            value |= {"rest": self.rest, "wide": list(self.wide), "weights_only": self.weights_only,
                      "weight_bits": self.weight_bits}
        return value


def _keeping_unknown_keys(value: Any, validate: Any) -> PrecisionPlan:
    if not isinstance(value, dict):
        return validate(value)
    known = [entry.name for entry in fields(PrecisionPlan) if entry.name != "unknown"]
    plan = validate({key: item for key, item in value.items() if key in known})
    return replace(plan, unknown={key: item for key, item in value.items() if key not in known})


Plan = Annotated[
    PrecisionPlan, WrapValidator(_keeping_unknown_keys), PlainSerializer(lambda plan: plan.unknown | plan.to_json()),
]
"""A precision plan as a field of a manifest."""


def covers(names: Collection[str], module: str) -> bool:
    """Whether `names`, of modules or of what contains them, include a module."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def plan_from_json(value: dict[str, Any]) -> PrecisionPlan:
    """The plan that `PrecisionPlan.to_json` wrote. Raises `ValueError` if it is not valid."""
    return TypeAdapter(Plan).validate_python(value)
