"""Rewrites of a graph give the same maps, find what they are for, and refuse unknown names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.rewrite import REWRITES, rewrite
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput
from dpt_deploy.parity import compare, load_budget
from dpt_deploy.parity.reference import FILE, Reference
from tests.tiny import tiny_bundle

__all__ = ["tiny_bundle"]


@pytest.mark.parametrize(("name", "count"), [("project-before-resize", 4), ("join-first-convolutions", 1)])
def test_a_rewritten_graph_is_within_the_fp32_budgets(tiny_bundle: Path, name: str, count: int) -> None:
    bundle = Bundle.open(tiny_bundle)
    model = onnx.load(bundle.path(bundle.find("onnx", graph="model", precision="fp32")[0]))
    before = [node.op_type for node in model.graph.node]
    assert rewrite(model, [name]) == {name: count}
    assert [node.op_type for node in model.graph.node] != before
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    reference, (budget, _) = Reference.load(tiny_bundle / FILE), load_budget(None)

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"image": batch}), strict=True))

    stage = compare(name, run, reference, "model", "fp32", budget)
    assert stage, stage.reasons


def test_the_command_says_what_it_wants(tmp_path: Path) -> None:
    for words in ([], ["absent.onnx", "out.onnx", "join-first-convolutions"], ["a.onnx", "b.onnx", "faster"]):
        command = [sys.executable, "-m", "benchmarks.rewrite", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and "usage" in done.stderr and "Traceback" not in done.stderr


def test_an_unknown_rewrite_lists_the_known() -> None:
    with pytest.raises(BadInput, match=", ".join(REWRITES)):
        rewrite(onnx.ModelProto(), ["faster"])
