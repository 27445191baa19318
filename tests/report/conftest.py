"""A judged bundle of a few bytes, with every kind of stage and an engine."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import Cause
from dpt_deploy.core.exhibit import Exhibit
from dpt_deploy.core.manifest import Manifest
from dpt_deploy.core.verdict import ParityReport, Stage, StageId, StageKind, not_run
from dpt_deploy.parity.compare import compare, load_budget
from dpt_deploy.parity.judge import WorstMaps
from dpt_deploy.parity.reference import Reference
from tests.graphs import model as onnx_file
from tests.parity.conftest import random_case
from tests.tiny import tiny_bundle

__all__ = ["tiny_bundle"]

BUDGET, _ = load_budget(None)
SIZE = 48, 64


class Judged(NamedTuple):
    bundle: Bundle
    report: ParityReport
    exhibits: dict[str, Exhibit]


@pytest.fixture
def judged(tmp_path: Path) -> Judged:
    """A failed report: one stage is out of budget, and not finite for an image called <two>."""
    reference = Reference((random_case("one", seed=0, size=SIZE), random_case("<two>", seed=1, size=SIZE)))
    answers = {case.frame.tobytes(): case.maps["frame"] for case in reference.cases}
    worst = WorstMaps()

    def stage(title: str, kind: StageKind, precision: str, error: float, spoil: bool = False) -> Stage:
        def run(batch: np.ndarray) -> dict[str, np.ndarray]:
            maps = {key: np.stack([answers[frame.tobytes()][key] for frame in batch]) for key in BUDGET["fp32"]}
            maps["depth"] = maps["depth"] * np.float32(1 + error)
            maps["alpha"] = maps["alpha"] + np.float32(error)
            if spoil:
                maps["normals"][1, :9] = np.nan
            return maps
        return compare(StageId(kind, "frame", precision, title=title), run, reference, BUDGET, on_exhibit=worst)

    stages = (
        Stage(StageId(StageKind.WEIGHTS, "frame", "fp16", title="weights frame fp16"), "passed",
              notes=("all 9 tensors",)),
        stage("ONNX Runtime frame fp32", StageKind.GRAPH, "fp32", 1e-6),
        stage("ONNX Runtime frame fp16", StageKind.GRAPH, "fp16", 3e-4),
        stage("tensorrt frame fp16", StageKind.BACKEND, "fp16", 0.02, spoil=True),
        not_run(StageId(StageKind.BACKEND, "frame", "fp32", title="C++ runtime frame fp32"), Cause.NOT_BUILT,
                "not built"),
    )
    bundle = Bundle.create(tmp_path / "bundle", Manifest.model_validate({
        "name": "a bundle", "contract": Contract().to_json(), "versions": {"torch": "2"}, "command": "export <x>",
        "checkpoint": {"file": "best.pth", "sha256": "c0ffee00" * 8}, "created": "2026-01-01T10:00:00+00:00",
    }))
    bundle.folder.mkdir()
    (bundle.folder / "frame.fp16.onnx").write_bytes(onnx_file(bundle.contract))
    (bundle.folder / "frame.engine").write_bytes(b"engine")
    graph = bundle.add("frame.fp16.onnx", "onnx", graph="frame", precision="fp16")
    certificate = {"status": "passed", "fused_attention": {"found": 12, "expected": 12}, "islands": ["a", "b"],
                   "layers": [{"name": "x" * 90, "half": True}], "memory": None, "share": 0.98765,
                   "flops": {"share": 0.97}, "attention": {"layers": 12, "blocks": 12}}
    bundle.add("frame.engine", "engine", graph="frame", precision="fp16", details={
        "builder": "tensorrt", "builder_version": "11.4", "made_from": graph.sha256, "certificate": certificate})
    return Judged(bundle, ParityReport(stages, BUDGET, "default", ("one", "<two>")), worst.by_head)
