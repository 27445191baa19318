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


def compare_weights(path: Path, artifact: Artifact, expected: Mapping[str, np.ndarray]) -> Stage:
    """Compare the initializers of a graph with the checkpoint's tensors, rounded once to the initializer's type.

    Args:
        path: The ONNX file.
        artifact: The manifest entry of the file.
        expected: The checkpoint's tensors by name, float32, with folded batch norms.

    Returns:
        A stage with findings for missing, different and unknown tensors.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise missing_package("onnx", "export", "compare weights") from error
    graph = onnx.load(path).graph
    found: dict[str, np.ndarray] = {}
    for tensor in graph.initializer:
        if tensor.data_type in FLOAT_TYPES:
            found[tensor.name] = numpy_helper.to_array(tensor)
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
        error = float(np.abs(have.astype(np.float64) - rounded.astype(np.float64)).max()) / scale
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
    return Stage(stage, "failed" if findings else "passed", artifact.sha256, values, findings=tuple(findings),
                 notes=() if findings else (note,), compared=Compared(tensors=len(used)))
