"""Reports of version 0.1.0, which named their stages in words: read into today's types, here and nowhere else."""

from __future__ import annotations

from typing import Any

from .verdict import Fault, Finding, StageId, StageKind

_BY_TITLE = (  # how a title began, what it is, on which backend and device
    ("weights ", StageKind.WEIGHTS, "", "cpu"),
    ("PyTorch ", StageKind.PYTORCH, "", "cpu"),
    ("ONNX Runtime ", StageKind.GRAPH, "onnxruntime-cpu", "cpu"),
    ("Runtime, ", StageKind.STEPS, "onnxruntime-cpu", "cpu"),
    ("C++ runtime ", StageKind.BACKEND, "cpp", "cpu"),
    ("OpenVINO ", StageKind.BACKEND, "openvino", "cpu"),
    ("tensorrt-rtx ", StageKind.BACKEND, "tensorrt-rtx", "gpu"),
    ("tensorrt ", StageKind.BACKEND, "tensorrt", "gpu"),
)


def upgraded(entry: dict[str, Any]) -> dict[str, Any]:
    """A stage as 0.1.0 wrote it, in today's form. Raises `ValueError` for a title that it did not write."""
    title, reasons = entry["name"], tuple(entry["reasons"])
    found = next((row for row in _BY_TITLE if title.startswith(row[0])), None)
    if found is None:
        raise ValueError(f"unknown stage {title!r}")
    _, kind, backend, device = found
    graph = "model" if " model" in title or kind is StageKind.PYTORCH else "frame"
    stage = StageId(kind, graph, entry["precision"], backend, device, entry["artifact"], title)
    kept = {key: value for key, value in entry.items() if key not in ("name", "precision", "artifact", "reasons")}
    told: dict[str, Any] = {"notes": reasons}
    if entry["status"] == "failed":
        told = {"findings": tuple(Finding(Fault.RAISED, detail=reason) for reason in reasons)}
    elif entry["status"] == "not run":
        told = {"detail": "; ".join(reasons)}
    return kept | told | {"id": stage}
