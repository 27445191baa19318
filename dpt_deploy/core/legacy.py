"""Convert parity reports of version 0.1.0, which identified stages and findings by sentences, to the current JSON."""

from __future__ import annotations

import re
from typing import Any

_BY_TITLE = (  # prefix of the title; kind, backend and device of the stage
    ("weights ", "weights", "", "cpu"),
    ("PyTorch ", "pytorch", "", "cpu"),
    ("ONNX Runtime ", "graph", "onnxruntime-cpu", "cpu"),
    ("Runtime, ", "steps", "onnxruntime-cpu", "cpu"),
    ("C++ runtime ", "backend", "cpp", "cpu"),
    ("OpenVINO ", "backend", "openvino", "cpu"),
    ("tensorrt-rtx ", "backend", "tensorrt-rtx", "gpu"),
    ("tensorrt ", "backend", "tensorrt", "gpu"),
)
_HEAD = r"(?P<head>depth|normals|alpha)"
_OVER_BUDGET = re.compile(_HEAD + r" (?P<metric>\S+) (?P<value>\S+), budget (?P<bound>\S+), worst image (?P<image>.*)")
_FAULTS = (
    re.compile(rf".*: {_HEAD}(_logits)? (is NaN or Inf in \S+ of its values|has shape \[.*\])"),
    re.compile(rf".*: no output {_HEAD}(_logits)?"),
)


def upgraded(stage: dict[str, Any]) -> dict[str, Any]:
    """Convert a stage of version 0.1.0 to the current JSON. Raises `ValueError` for an unknown title."""
    title, reasons = stage["name"], list(stage["reasons"])
    found = next((row for row in _BY_TITLE if title.startswith(row[0])), None)
    if found is None:
        raise ValueError(f"unknown stage {title!r}")
    _, kind, backend, device = found
    identity = {
        "kind": kind, "graph": "model" if " model" in title or kind == "pytorch" else "frame",
        "precision": stage["precision"], "backend": backend, "device": device, "file": stage["artifact"],
        "title": title,
    }
    converted: dict[str, Any] = {"notes": reasons}
    if stage["status"] == "failed":
        converted = {"findings": [_finding(reason) for reason in reasons]}
    elif stage["status"] == "not run":
        converted = {"detail": "; ".join(reasons)}
    return stage | converted | {"id": identity}


def _finding(reason: str) -> dict[str, Any]:
    """Convert a reason. Budget violations become data, so the stage can be evaluated against another budget."""
    if found := _OVER_BUDGET.fullmatch(reason):
        numbers = {key: float(found[key]) for key in ("value", "bound")}
        return {"fault": "over budget"} | found.groupdict() | numbers
    heads = (about["head"] for pattern in _FAULTS if (about := pattern.fullmatch(reason)))
    return {"fault": "raised", "head": next(heads, None), "detail": reason}
