"""The FP32 graph that is made from the FP16 trace is the one that a trace in FP32 gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpt_deploy.core.manifest import PrecisionPlan
from dpt_deploy.export import network
from dpt_deploy.export.graph import export_graph
from dpt_deploy.export.network import Network
from dpt_deploy.export.precision import typed
from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model
from tests.tiny import FP32, lively_model

DEFAULT = PrecisionPlan.fp32
MIXED = (*DEFAULT, "residual", "attention", "decoder.fusion.2", "backbone.blocks.1.mlp")


def check(model: MultiTaskDPT, plan: PrecisionPlan, folder: Path, opset: int = 23) -> None:
    """Compare the graphs of one `Network` with those of a trace of their own."""
    exports = Network(model, model.contract(), opset)
    for wanted in (plan, FP32):
        ours, theirs = folder / f"{wanted.precision}.onnx", folder / "direct.onnx"
        exports.export(wanted, ours, {})
        export_graph(typed(model, wanted), model.contract(), theirs, opset, {})
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that `Network` traces a model for."""
    seen = []
    original = network.named_trace
    monkeypatch.setattr(network, "named_trace", lambda module, contract, what, opset: (
        seen.append(what), original(module, contract, what, opset))[1])
    return seen


@pytest.mark.parametrize("fp32", [DEFAULT, MIXED], ids=["default", "mixed"])
def test_one_trace_gives_both_graphs(tmp_path: Path, traces: list[str], fp32: tuple[str, ...]) -> None:
    check(lively_model(), PrecisionPlan("fp16", fp32), tmp_path)
    assert traces == ["fp16.onnx"]


@pytest.mark.parametrize(("plan", "opset"), [
    (PrecisionPlan("fp16", ()), 23),  # the threshold of softplus is a number in FP16
    (PrecisionPlan("fp16"), 20),  # and so is the scale of attention
    (PrecisionPlan("bf16"), 23),
], ids=["numbers in FP16", "opset 20", "BF16"])
def test_a_graph_that_lost_something_is_traced_again(
    tmp_path: Path, traces: list[str], plan: PrecisionPlan, opset: int
) -> None:
    check(lively_model(), plan, tmp_path, opset)
    assert len(traces) == 2


@pytest.mark.slow  # a minute
@pytest.mark.parametrize("backbone", [
    "vit_tiny_patch16_384", "deit3_small_patch16_224", "vit_small_patch16_dinov3", "vit_small_patch14_reg4_dinov2",
])
def test_backbones_of_other_kinds(tmp_path: Path, backbone: str) -> None:
    model = create_multitask_dpt_model(backbone, features=32, backbone_kwargs={"depth": 4}).eval()
    check(model, PrecisionPlan(), tmp_path)
