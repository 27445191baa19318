"""Engines that are not attempted where the builder cannot parse the graph, and engines of eight-bit graphs."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from dpt_deploy.build import EngineOptions, build_engines
from dpt_deploy.build import engine as engine_module
from dpt_deploy.build.engine import Builder, build_engine
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BuildError
from dpt_deploy.core.manifest import Artifact, PrecisionPlan
from dpt_deploy.export.quantization.insertion import insert
from dpt_deploy.export.quantization.layers import eight_bit, ends, layers_of
from tests.eight_bits import add_eight_bits, measured_ranges
from tests.tiny import own_bundle, tiny_bundle  # noqa: F401

RTX = EngineOptions("tensorrt-rtx")


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


def add_as_exported(bundle: Bundle, plan: PrecisionPlan) -> PrecisionPlan:
    """Write and register the model graph of a plan as the export does; the first and last layers stay wide."""
    path = bundle.folder / "model.fp32.onnx"
    fp32, size = onnx.load(path), bundle.contract.input_size
    ranges = measured_ranges(bundle, "model", plan.precision)
    by_module = {layer.module: ranges[layer.activation] for layer in layers_of(fp32, size)[0]}
    model = onnx.load(bundle.folder / f"model.{plan.rest}.onnx")
    layers, _ = layers_of(model, size)
    plan = PrecisionPlan(plan.precision, plan.fp32, plan.rest, ends(layers), plan.weights_only)
    nodes = {layer.node for layer in eight_bit(layers, plan.wide)}
    clips = {layer.activation: by_module[layer.module] for layer in layers}
    file = f"model.{plan.precision}.onnx"
    onnx.save(insert(model, nodes, clips, plan), bundle.folder / file)
    bundle.add(file, "onnx", graph="model", precision=plan.precision, details={"opset": 23, "plan": plan})
    return plan


def built(bundle: Bundle, precision: str) -> tuple[Artifact, str]:
    """The only engine in a precision, and the last line of the build."""
    lines: list[str] = []
    (engine,) = build_engines(bundle, RTX, lines.append, (precision,))
    return engine, lines[-1]


def test_an_int8_frame_engine(own_bundle: Path) -> None:  # noqa: F811
    bundle = Bundle.open(own_bundle)
    add_eight_bits(bundle, "int8", ("frame",))
    engine, line = built(bundle, "int8")
    assert engine.file.startswith("frame.int8.rtx1.") and (own_bundle / engine.file).stat().st_size == engine.bytes
    found = Bundle.open(own_bundle).find("engine", file=engine.file)[0].details.certificate
    assert found.status == "passed" and found.eight_bits.type == "int8" and found.eight_bits.islands == ()
    assert found.eight_bits.layers > 50 and 0.8 < found.eight_bits.share < 0.9  # the frame's resize is not quantized
    assert "86.8% of matrix FLOPs in INT8, 0.0% of matrix FLOPs in half precision, attention 6/6 blocks" in line
    # The engine file holds kernels with INT8 operands for all of it.
    assert found.eight_bits.kernels.status == "passed" and found.eight_bits.kernels.share == 1
    assert built(bundle, "int8")[1].startswith("reused")


def test_an_fp8_engine_serves_gpus_with_fp8(own_bundle: Path) -> None:  # noqa: F811
    bundle = Bundle.open(own_bundle)
    add_as_exported(bundle, PrecisionPlan("fp8", ()))
    engine, line = built(bundle, "fp8")
    assert engine.file.startswith("model.fp8.rtx1.") and "97.1% of matrix FLOPs in FP8" in line
    assert "8.6" not in engine.details.serves and "8.9" in engine.details.serves
    found = engine.details.certificate.eight_bits
    assert (found.type, found.layers, found.kernels.status, found.kernels.share) == ("fp8", 61, "passed", 1)


def test_an_int8_engine_with_the_rest_in_fp16(own_bundle: Path) -> None:  # noqa: F811
    bundle = Bundle.open(own_bundle)
    add_as_exported(bundle, PrecisionPlan("int8", rest="fp16"))
    engine, line = built(bundle, "int8")
    certificate = engine.details.certificate
    assert "97.1% of matrix FLOPs in INT8, 2.9% of matrix FLOPs in half precision, attention 6/6 blocks" in line
    assert certificate.attention.sums == "fp16"
    assert certificate.flops.share + certificate.eight_bits.share == pytest.approx(1)
    assert certificate.eight_bits.kernels.share == 1


def test_an_engine_with_weights_alone_in_eight_bits(own_bundle: Path) -> None:  # noqa: F811
    bundle = Bundle.open(own_bundle)
    add_as_exported(bundle, PrecisionPlan("int8", rest="fp16", weights_only=True))
    engine, line = built(bundle, "int8")
    found = engine.details.certificate.eight_bits
    assert (found.layers, found.weights_only, found.share, found.kernels.status) == (0, 61, 0, "not run")
    assert "weights of 61 layers in INT8, 100.0% of matrix FLOPs in half precision" in line


def test_turing_has_no_eight_bits(own_bundle: Path) -> None:  # noqa: F811
    bundle = Bundle.open(own_bundle)
    add_eight_bits(bundle, "int8", ("model", "frame"))
    lines: list[str] = []
    assert build_engines(bundle, EngineOptions("tensorrt-rtx", turing=True), lines.append, ("int8",)) == []
    assert len(lines) == 2 and all("no eight-bit kernels on Turing" in line for line in lines)
