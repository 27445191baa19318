"""Engines are not attempted where the builder cannot parse the graph."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from dpt_deploy.build import engine as engine_module
from dpt_deploy.build.engine import Builder, build_engine
from dpt_deploy.core.errors import BuildError


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The builder processes that were started; each fails."""
    started: list[str] = []

    def run_builder(request: dict, builder: Builder, failure: str) -> dict:
        started.append(builder.version)
        raise BuildError("the builder started")

    monkeypatch.setattr(engine_module, "run_builder", run_builder)
    return started


@pytest.mark.parametrize(
    ("builder", "operator", "refused"),
    [
        (Builder("tensorrt", "10.3.0"), "Attention", True),  # JetPack 6.2
        (Builder("tensorrt", "10.13.3.9"), "Attention", True),
        (Builder("tensorrt", "10.13.3.9"), "MatMul", False),
        (Builder("tensorrt", "10.14.1.48"), "Attention", False),
        (Builder("tensorrt", "11.4.0.106"), "Attention", False),
        (Builder("tensorrt-rtx", "1.4.0.76"), "Attention", False),  # versions of another product
    ],
)
def test_a_tensorrt_without_the_attention_operator_is_told_to_upgrade_or_use_opset_20(
    builder: Builder, operator: str, refused: bool, tmp_path: Path, attempts: list[str]
) -> None:
    node = onnx.helper.make_node(operator, ["q", "k", "v"][:2 if operator == "MatMul" else 3], ["y"])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])), tmp_path / "frame.fp16.onnx")
    with pytest.raises(BuildError) as error:
        build_engine(tmp_path / "frame.fp16.onnx", tmp_path / "e", builder, {}, "fp16", (64, 64))
    assert attempts == ([] if refused else [builder.version])
    if refused:
        for part in ("expected TensorRT 10.14 or newer", f"received {builder.version}", "--upgrade", "--opset 20"):
            assert part in str(error.value)
