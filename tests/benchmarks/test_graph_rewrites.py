"""Rewrites of a graph apply where they should, and keep the maps within the FP32 budgets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.graph_rewrites import REWRITES
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.verdict import StageId, StageKind
from dpt_deploy.parity import compare, load_budget
from dpt_deploy.parity.reference import FILE, Reference
from tests.tiny import tiny_bundle

__all__ = ["tiny_bundle"]


@pytest.mark.parametrize(("name", "count"), [("project-before-resize", 4), ("join-first-convolutions", 1)])
def test_a_rewritten_graph_is_within_the_fp32_budgets(tiny_bundle: Path, name: str, count: int) -> None:
    bundle = Bundle.open(tiny_bundle)
    model = onnx.load(bundle.path(bundle.find("onnx", graph="model", precision="fp32")[0]))
    before = [node.op_type for node in model.graph.node]
    assert REWRITES[name](model) == count
    assert [node.op_type for node in model.graph.node] != before
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    reference, (budget, _) = Reference.load(tiny_bundle / FILE, Bundle.open(tiny_bundle).contract), load_budget(None)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": batch}), strict=True))

    stage = compare(StageId(StageKind.GRAPH, "model", "fp32", title=name), run, reference, budget)
    assert stage.passed, stage.reasons
