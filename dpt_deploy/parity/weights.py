"""Every weight of a graph against the checkpoint, tensor by tensor: budgets on outputs miss half of all 1 % errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import missing_package
from ..core.files import sha256
from .compare import Stage

FLOAT_TYPES = (1, 10, 16)  # onnx.TensorProto.FLOAT, FLOAT16, BFLOAT16


def compare_weights(
    path: Path, expected: Mapping[str, np.ndarray], precision: str, digest: str | None = None
) -> Stage:
    """Judge the initializers of the graph in `path`, whose SHA-256 is `digest` where it is known.

    `expected` holds the checkpoint's tensors, float32, by name (batch norms folded). Each must stand
    in the graph under its name, rounded once to the type it has there and not changed otherwise; what
    is missing, differs or is left over is named.
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
    reasons: list[str] = []
    used: set[str] = set()
    worst = 0.0
    for name, value in expected.items():
        candidates = [(name, value), (f"{name}.transposed", value.T)]
        if name.endswith(".resample.weight"):  # a transposed convolution as 1x1 convolution and depth-to-space
            moved = value.transpose(1, 2, 3, 0).reshape(-1, value.shape[0], 1, 1)
            candidates.append((name.replace(".weight", ".convolution.weight"), moved))
        if name.endswith(".resample.bias"):
            candidates.append((name.replace(".bias", ".convolution.bias"), None))
        key, want = next(((key, want) for key, want in candidates if key in found), (None, None))
        if key is None:
            reasons.append(f"{name} is missing from the graph")
            continue
        have = found[key]
        used.add(key)
        if want is None:
            want = np.repeat(value, have.size // value.size)
        if have.shape != want.shape:
            reasons.append(f"{name} has shape {list(have.shape)}, expected {list(want.shape)}")
            continue
        rounded = want.astype(have.dtype)
        scale = max(float(np.abs(want).max()), 1e-12)
        error = float(np.abs(have.astype(np.float64) - rounded.astype(np.float64)).max()) / scale
        worst = max(worst, error)
        if error != 0.0:  # NaN too
            reasons.append(f"{name} differs by {error:.2%} of its largest weight")
        if not np.isfinite(have.astype(np.float32)).all():
            reasons.append(f"{name} does not fit the range of {have.dtype}")
    prefixes = ("backbone.", "decoder.", "heads.")
    left = [name for name in found if name.startswith(prefixes) and name not in used]
    reasons += [f"{name} is in the graph and not in the checkpoint" for name in left]
    values: dict[str, Any] = {"weights": {"tensors": len(used), "max_relative_difference": worst}}
    name = f"weights {path.stem.replace('.', ' ')}"
    status = "failed" if reasons else "passed"
    told = reasons or [f"all {len(used)} tensors of the checkpoint stand in the graph, rounded once and not changed"]
    return Stage(name, status, precision, path.name, digest or sha256(path), values, {}, tuple(told))
