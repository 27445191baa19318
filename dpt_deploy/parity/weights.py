"""Compare every weight of a graph with the checkpoint, because output budgets miss half of all 1 % weight errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import missing_package
from ..core.manifest import Artifact
from ..core.verdict import Compared, Fault, Finding, Stage, StageId, StageKind

FLOAT_TYPES = (1, 10, 16)  # onnx.TensorProto.FLOAT, FLOAT16, BFLOAT16
EIGHT_BIT_TYPES = {3: "int8", 17: "fp8"}  # onnx.TensorProto.INT8, FLOAT8E4M3FN
ULP = 1e-3  # of the allowed rounding error: the division by the scale and the scale itself are rounded too


def compare_weights(path: Path, artifact: Artifact, expected: Mapping[str, np.ndarray]) -> Stage:
    """Compare the initializers of a graph with the checkpoint's tensors, rounded once to the initializer's type.

    Tensors in eight bits may differ by half a step.

    Args:
        path: The ONNX file.
        artifact: The manifest entry of the file.
        expected: The checkpoint's tensors by name, float32, with batch norms and biases folded as the export does.

    Returns:
        A stage with findings for missing, different and unknown tensors.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise missing_package("onnx", "export", "compare weights") from error
    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()
             if tensor.data_type in FLOAT_TYPES and not name.startswith("quantization/")}
    rounding: dict[str, np.ndarray] = {}  # the allowed difference of tensors in eight bits
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and (tensor := tensors.get(node.input[0])) is not None:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            scale = numpy_helper.to_array(tensors[node.input[1]])
            found[tensor.name], rounding[tensor.name] = _dequantized(numpy_helper.to_array(tensor), scale, axis,
                                                                     EIGHT_BIT_TYPES.get(tensor.data_type, ""))
    findings: list[Finding] = []
    used: set[str] = set()
    worst = 0.0
    for name, value in expected.items():
        candidates = [(name, value), (f"{name}.transposed", value.T)]
        if name.endswith(".resample.weight"):  # exported as 1x1 convolution and depth-to-space
            reordered = value.transpose(1, 2, 3, 0).reshape(-1, value.shape[0], 1, 1)
            candidates.append((name.replace(".weight", ".convolution.weight"), reordered))
        if name.endswith(".resample.bias"):
            candidates.append((name.replace(".bias", ".convolution.bias"), None))
        key, want = next(((key, want) for key, want in candidates if key in found), (None, None))
        if key is None:
            findings.append(Finding(Fault.TENSOR_MISSING, name=name))
            continue
        have = found[key]
        used.add(key)
        if want is None:
            want = np.repeat(value, have.size // value.size)
        if have.shape != want.shape:
            findings.append(Finding(Fault.TENSOR_SHAPE, name=name,
                                    detail=f"{list(have.shape)}, expected {list(want.shape)}"))
            continue
        rounded = want.astype(have.dtype)
        scale = max(float(np.abs(want).max()), 1e-12)
        difference = np.abs(have.astype(np.float64) - rounded.astype(np.float64))
        if key in rounding:
            difference = np.where(difference <= rounding[key], 0.0, difference)  # NaN stays
        error = float(difference.max()) / scale
        worst = max(worst, error)
        if error != 0.0:  # also true for NaN
            findings.append(Finding(Fault.TENSOR_DIFFERS, name=name, value=error))
        if not np.isfinite(have.astype(np.float32)).all():
            findings.append(Finding(Fault.TENSOR_RANGE, name=name, detail=str(have.dtype)))
    prefixes = ("backbone.", "decoder.", "heads.")
    findings += [Finding(Fault.TENSOR_UNKNOWN, name=name)
                 for name in found if name.startswith(prefixes) and name not in used]
    if not used and not findings:
        findings.append(Finding(Fault.NOT_MEASURED, name="weights"))
    values: dict[str, Any] = {"weights": {"tensors": len(used), "max_relative_difference": worst}}
    stage = StageId(StageKind.WEIGHTS, artifact.graph, artifact.precision, file=artifact.file,
                    title=f"weights {artifact.graph} {artifact.precision}")
    note = f"all {len(used)} tensors of the checkpoint are in the graph, rounded once and otherwise unchanged"
    if rounding:
        note += f"; {len(rounding)} of them to eight bits, within half a step"
    return Stage(stage, "failed" if findings else "passed", artifact.sha256, values, findings=tuple(findings),
                 notes=() if findings else (note,), compared=Compared(tensors=len(used)))


def _dequantized(values: np.ndarray, scale: np.ndarray, axis: int, form: str) -> tuple[np.ndarray, np.ndarray]:
    """A weight in eight bits as float64, and how far each value may be from the checkpoint's."""
    others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    # In FP16, the checkpoint's weights were rounded before.
    rounded_before = (2.0**-11, 2.0**-25) if scale.dtype == np.float16 else (0.0, 0.0)  # relative and absolute
    scale = np.broadcast_to(np.expand_dims(scale.astype(np.float64), others), values.shape)
    have = values.astype(np.float64) * scale
    if form == "fp8":  # 3 bits of mantissa, and steps of 2^-9 below 2^-6
        step = np.maximum(np.abs(have) * 2.0**-3, scale * 2.0**-9)
    elif form == "int8":
        step = scale
    else:
        return have, np.zeros(values.shape)
    return have, step * (0.5 + ULP) + (np.abs(have) + step) * rounded_before[0] + rounded_before[1]
