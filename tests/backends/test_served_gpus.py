"""Which GPUs a builder serves: the same answer from load, build, doctor and parity, and advice that can help."""

from __future__ import annotations

from pathlib import Path

import pytest

import dpt_deploy
from dpt_deploy.backends import device, tensorrt
from dpt_deploy.backends.served_gpus import rtx_capabilities, unserved
from dpt_deploy.build import EngineOptions, build_engines, choose_builder
from dpt_deploy.build import engine as engine_module
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BackendError
from dpt_deploy.doctor.bundle import check_bundle
from dpt_deploy.parity import judge
from tests.tiny import own_bundle, tiny_bundle  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
UNSERVED = ("8.0", "8.7", "9.0", "10.0", "10.3", "11.0")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Pretend that a GPU of some compute capability is visible."""
    return lambda capability: monkeypatch.setattr(device, "compute_capability", lambda: capability)


@pytest.mark.parametrize("capability", UNSERVED)
def test_tensorrt_rtx_does_not_serve_these_gpus(capability: str) -> None:
    problem = unserved("tensorrt-rtx", "1.7.1", capability)
    assert f"this one has {capability}" in problem.reason
    assert "--builder tensorrt;" in problem.instead and "onnxruntime-cuda" in problem.instead
    assert unserved("tensorrt", "11.4.1", capability) is None


def test_the_table() -> None:
    assert rtx_capabilities("1.4.0") == ("8.6", "8.9", "12.0")
    assert rtx_capabilities("1.7.1.116") == ("8.6", "8.9", "12.0", "12.1")
    for capability in ("8.6", "8.9", "12.0", "12.1"):
        assert unserved("tensorrt-rtx", "1.7.1", capability) is None
        assert unserved("tensorrt-rtx", "1.7.1", capability, for_turing=True) is not None
    assert unserved("tensorrt-rtx", "1.7.1", None) is None
    assert "tensorrt-rtx --turing" in unserved("tensorrt-rtx", "1.7.1", "7.5").instead
    assert unserved("tensorrt-rtx", "1.7.1", "7.5", for_turing=True) is None
    assert "12.1" in unserved("tensorrt-rtx", "1.4.0", "12.1").reason
    assert "7.5 and later" in unserved("tensorrt", "11.4", "7.0").reason
    assert unserved("tensorrt", "10.4.0", "7.0") is None
    assert "TensorRT:" not in unserved("tensorrt-rtx", "1.7.1", "7.0").instead


@pytest.mark.parametrize(("builder", "version"), [("tensorrt", "11.4.1"), ("tensorrt-rtx", "1.7.1")])
def test_fp8_needs_a_gpu_that_has_it(builder: str, version: str) -> None:
    assert rtx_capabilities("1.7.1", "fp8") == ("8.9", "12.0", "12.1")
    assert rtx_capabilities("1.7.1", "int8") == rtx_capabilities("1.7.1")
    problem = unserved(builder, version, "8.6", precision="fp8")
    assert problem.reason == "FP8 needs a GPU of compute capability 8.9 or later, and this one has 8.6"
    assert unserved(builder, version, "8.9", precision="fp8") is None
    assert unserved(builder, version, "8.6", precision="int8") is None


def test_tensorrt_skips_fp8_where_the_gpu_has_none(own_bundle: Path, gpu, monkeypatch) -> None:  # noqa: F811
    gpu("8.0")
    monkeypatch.setattr("dpt_deploy.build.choose_builder", lambda options: engine_module.Builder("tensorrt", "11.4.1"))
    bundle, lines = Bundle.open(own_bundle), []
    bundle.add("model.fp32.onnx", "onnx", graph="model", precision="fp8", details=bundle.find(
        "onnx", file="model.fp32.onnx")[0].details)
    assert build_engines(bundle, EngineOptions("tensorrt"), lines.append, ("fp8",)) == []
    assert "skipped  model.fp32.onnx: FP8 needs a GPU of compute capability 8.9" in lines[-1]


def test_the_documentation_has_the_same_table() -> None:
    text = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    assert f"| TensorRT-RTX 1.0 to 1.4 | {', '.join(rtx_capabilities('1.4'))}; 7.5 with `--turing` |" in text
    assert f"| TensorRT-RTX 1.5 to 1.7 | {', '.join(rtx_capabilities('1.7'))}; 7.5 with `--turing` |" in text


def test_auto_never_builds_what_cannot_run_here(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    available = {"tensorrt": "not installed", "tensorrt-rtx": None}
    monkeypatch.setattr(engine_module, "_unavailable_reason", lambda name: available[name])
    gpu("9.0")
    with pytest.raises(BackendError, match=r"--builder auto: .*this one has 9\.0.*--builder none.*pip install.*"
                                           r"onnxruntime-cuda") as caught:
        choose_builder(EngineOptions())
    assert "again" not in str(caught.value)
    assert choose_builder(EngineOptions("tensorrt-rtx")).name == "tensorrt-rtx"
    for capability in (None, "8.9", "12.1"):
        gpu(capability)
        assert choose_builder(EngineOptions()).name == "tensorrt-rtx"
    with pytest.raises(BackendError, match=r"--turing: expected .* 7\.5, received 12\.1\. Omit --turing"):
        choose_builder(EngineOptions(turing=True))
    gpu("7.5")
    with pytest.raises(BackendError, match="--turing"):
        choose_builder(EngineOptions())
    assert choose_builder(EngineOptions(turing=True)).name == "tensorrt-rtx"


def test_an_engine_that_was_asked_for_is_built_with_a_note(own_bundle: Path, gpu) -> None:  # noqa: F811
    gpu("9.0")
    lines: list[str] = []
    build_engines(Bundle.open(own_bundle), EngineOptions("tensorrt-rtx"), lines.append)
    assert "will not run on this machine" in lines[0] and "--builder tensorrt;" in lines[0]


def test_load_and_doctor_name_what_works_there(own_bundle: Path, gpu, monkeypatch) -> None:  # noqa: F811
    gpu("9.0")
    monkeypatch.setattr(tensorrt.TensorRT, "unavailable", lambda self: None)
    with pytest.raises(BackendError, match=r"this one has 9\.0\. Instead, use TensorRT.*onnxruntime-cuda") as caught:
        dpt_deploy.load(own_bundle, backend="tensorrt-rtx")
    assert "Build it again" not in str(caught.value)
    bundle = Bundle.open(own_bundle)
    for engine in [engine for engine in bundle.find("engine") if engine.graph == "model"]:
        bundle.remove(engine)
    with pytest.raises(BackendError, match=r"this one has 9\.0.*use TensorRT"):
        dpt_deploy.load(own_bundle, backend="tensorrt-rtx", graph="model")
    (check,) = [check for check in check_bundle(Bundle.open(own_bundle)) if check.subject.startswith("frame.fp16.rtx")]
    assert check.status == "warning" and "this one has 9.0" in check.finding and "use TensorRT" in check.remedy
    machine, builder = tensorrt.TensorRT("tensorrt-rtx").diagnose()
    assert machine.status == "warning" and "this one has 9.0" in machine.finding
    assert builder.status == "ok" and "the builder starts" in builder.finding


def test_parity_does_not_run_its_engines(tiny_bundle: Path, gpu) -> None:  # noqa: F811
    gpu("9.0")
    stages = [stage for stage in judge(Bundle.open(tiny_bundle)).report.stages if stage.id.backend == "tensorrt-rtx"]
    assert stages and all(stage.status == "not run" and "this one has 9.0" in stage.detail for stage in stages)


def test_an_engine_for_turing_alone(own_bundle: Path, gpu) -> None:  # noqa: F811
    """Built by the real builder, which needs no GPU."""
    gpu(None)
    bundle = Bundle.open(own_bundle)
    lines: list[str] = []
    (engine,) = build_engines(bundle, EngineOptions("tensorrt-rtx", turing=True), lines.append)
    assert engine.file == "model.fp16.rtx1.7-sm75.engine"
    assert engine.details.compute_capability == "7.5" and engine.details.serves == ("7.5",)
    assert any("frame.fp16.onnx" in line and "no FP32 matrix products on Turing" in line for line in lines)
