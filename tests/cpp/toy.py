"""A bundle with a tiny ONNX graph: it loads in milliseconds, and its maps are known exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from dpt_deploy.core.bundle import PARITY_JSON, Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.files import write_json
from dpt_deploy.core.manifest import Checkpoint, Manifest
from dpt_deploy.core.verdict import ParityReport, Stage, StageId, StageKind

FILE = "frame.fp32.onnx"
PLAN = b"PLAN of the fake module"


def toy_maps(frames: np.ndarray) -> dict[str, np.ndarray]:
    """The maps that the toy graph computes from uint8 RGB (N, H, W, 3)."""
    x = frames.astype(np.float32)
    scaled = x / np.float32(255)
    return {"depth": x[..., 0] + np.float32(1), "normals": scaled, "alpha": scaled[..., 1]}


def toy_graph(contract: Contract, outputs: tuple[str, ...] | None = None) -> onnx.ModelProto:
    """`toy_maps` as a graph. `outputs` other than the contract's heads give a graph that violates the contract."""
    nodes = [
        helper.make_node("Cast", ["frame"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Split", ["x"], ["r", "g", "b"], axis=3, num_outputs=3),
        helper.make_node("Squeeze", ["r", "last"], ["red"]),
        helper.make_node("Add", ["red", "one"], ["depth"]),
        helper.make_node("Div", ["x", "top"], ["normals"]),
        helper.make_node("Squeeze", ["g", "last"], ["green"]),
        helper.make_node("Div", ["green", "top"], ["alpha"]),
    ]
    constants = [
        helper.make_tensor("last", TensorProto.INT64, [1], [3]), helper.make_tensor("one", TensorProto.FLOAT, [], [1]),
        helper.make_tensor("top", TensorProto.FLOAT, [], [255]),
    ]
    axes: list[Any] = ["batch", "height", "width", 3]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, axes if name == "normals" else axes[:3])
        for name in outputs or contract.heads
    ]
    frame = helper.make_tensor_value_info("frame", TensorProto.UINT8, axes)
    model = helper.make_model(
        helper.make_graph(nodes, "toy", [frame], values, constants), opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    helper.set_model_props(model, {"contract": json.dumps(contract.to_json())})
    return model


def make_toy(folder: Path, contract: Contract | None = None, judged: bool = True, **graph: Any) -> Bundle:
    """A bundle with the toy graph in `folder` and, if `judged`, a verdict on it."""
    contract = contract or Contract()
    folder.mkdir(parents=True)
    manifest = Manifest(name="toy", contract=contract.to_json(), checkpoint=Checkpoint(file="toy.pth"))
    bundle = Bundle.create(folder, manifest)
    onnx.save(toy_graph(contract, **graph), folder / FILE)
    artifact = bundle.add(FILE, "onnx", graph="frame", precision="fp32")
    if judged:
        stage = Stage(StageId(StageKind.GRAPH, "frame", "fp32", file=FILE), "passed", artifact.sha256)
        write_json(folder / PARITY_JSON, ParityReport((stage,), {}, "default", ("one",)).to_json())
        bundle.add(PARITY_JSON, "report")
    return bundle


def add_engine(bundle: Bundle, **details: Any) -> str:
    """Add an engine for the fake module, which reads only its first four bytes."""
    file = "frame.fp16.trt11.4-sm90.engine"
    (bundle.folder / file).write_bytes(PLAN)
    defaults = {
        "builder": "tensorrt", "builder_version": "11.4.0.23", "compute_capability": "9.0",
        "profile": {"frame": {"min": [1, 8, 8, 3], "opt": [1, 16, 16, 3], "max": [4, 64, 64, 3]}}, "max_pixels": 8192,
    }
    bundle.add(file, "engine", graph="frame", precision="fp16", details=defaults | details)
    return file


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest in place."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2))
