"""Eight bits on a processor: only if asked for, really computed, and never said to be what they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from dpt_deploy import backends
from dpt_deploy.backends import openvino
from dpt_deploy.backends.eight_bits import FP8_NOTE, session_note, stage_notes
from dpt_deploy.backends.openvino import OpenVINOSession
from dpt_deploy.core import processor
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Graph
from dpt_deploy.core.errors import BackendError, Cause
from dpt_deploy.core.manifest import Artifact
from dpt_deploy.parity.compare import compare, load_budget
from dpt_deploy.parity.judge import load_reference, stage_tasks
from dpt_deploy.runtime import load, preference
from tests.backends.test_registry import ToyBackend
from tests.eight_bits import add_eight_bits, eight_bit
from tests.tiny import export_frame, lively_model, open_session, photo

CPU = ("openvino", "onnxruntime-cpu")


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny bundle with its graphs in INT8 and its frame graph in FP8. Read only."""
    copied = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("eight") / "bundle"))
    bundle = Bundle.open(copied)
    add_eight_bits(bundle, "int8", ("model", "frame"))
    add_eight_bits(bundle, "fp8")
    return copied


def relative(have: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    """The mean relative difference of depth."""
    return float(np.mean(np.abs(have["depth"] / want["depth"] - 1)))


@pytest.mark.parametrize("backend", CPU)
@pytest.mark.parametrize("graph", ["frame", "model"])
def test_int8_runs_when_it_is_asked_for(folder: Path, backend: str, graph: str) -> None:
    frame = photo(90, 120)
    with load(folder, backend, graph, "int8") as runtime, load(folder, backend, graph, "fp32") as full:
        assert runtime.artifact.file == f"{graph}.int8.onnx"
        in_fp32 = ", most convolutions in FP32" if backend == "onnxruntime-cpu" else ""
        assert f"in INT8{in_fp32}; this processor has" in runtime.reason
        assert 1e-4 < relative(runtime(frame).maps, full(frame).maps) < 0.1


def test_without_a_backend_int8_is_taken_where_it_runs(folder: Path) -> None:
    with load(folder, precision="int8") as runtime:
        assert runtime.artifact.precision == "int8" and runtime.backend == "openvino"


def test_eight_bits_are_never_chosen_unasked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(folder)
    for backend in backends.registered():
        for graph in ("frame", "model"):
            assert {"int8", "fp8"}.isdisjoint(a.precision for a in backend.candidates(bundle, graph, None))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for measure in ("0", ""):
        monkeypatch.setenv(preference.VARIABLE, measure)
        with load(folder) as runtime:
            assert runtime.artifact.precision == "fp32", runtime.reason
            assert "int8" not in runtime.reason, "it was not even measured"
    assert list((tmp_path / "cache").rglob("*.json")), "the second load measured"


def test_an_engine_in_eight_bits_is_taken_and_judged_if_asked_for(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    engine = bundle.find("engine", graph="frame")[0]
    shutil.copy(own_bundle / engine.file, own_bundle / "frame.int8.engine")
    bundle.add("frame.int8.engine", "engine", graph="frame", precision="int8", details=engine.details)
    rtx = backends.get("tensorrt-rtx")
    assert [a.file for a in rtx.candidates(bundle, "frame", "int8")] == ["frame.int8.engine"]
    assert "frame.int8.engine" not in [a.file for a in rtx.candidates(bundle, "frame", None)]
    assert "tensorrt-rtx frame int8" in [str(task.id) for task in rtx.stages(bundle)]


def test_nor_if_a_backend_offers_them_first(folder: Path) -> None:
    class Eager(ToyBackend):
        def candidates(self, bundle: Bundle, graph: Graph, precision: str | None) -> list[Artifact]:
            return [*bundle.find("onnx", graph=graph, precision="int8"), *super().candidates(bundle, graph, precision)]

    backends.register(Eager(), before="openvino")
    try:
        with load(folder, measure=False) as runtime:
            assert runtime.backend == "toy" and runtime.artifact.precision == "fp32"
        with load(folder, precision="int8") as runtime:
            assert runtime.artifact.precision == "int8"
    finally:
        backends.unregister("toy")


def test_a_bundle_with_nothing_else_is_refused_unasked(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(folder, tmp_path / "only"))
    for artifact in [*bundle.find("engine"), *(a for a in bundle.find("onnx") if a.precision in ("fp32", "fp16"))]:
        bundle.remove(artifact)
    with pytest.raises(BackendError, match=r"no backend can run here(?s:.*)it has model.int8.onnx"):
        load(bundle.folder)


def test_openvino_computes_what_is_not_quantized_in_fp32(folder: Path) -> None:
    """On a processor with BF16 units it would otherwise take BF16."""
    bundle = Bundle.open(folder)
    with OpenVINOSession(bundle, eight_bit(bundle), "bf16") as session:
        (part,) = session._parts
        hint = part._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        assert hint == "f32" and session.computes == "int8" and part.computes_in_int8()


def test_openvino_refuses_a_graph_that_only_says_int8(folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(folder, tmp_path / "renamed"))
    shutil.copy(bundle.folder / "frame.fp32.onnx", bundle.folder / "frame.int8.onnx")
    for data in bundle.folder.glob("frame.fp32.onnx.data"):
        shutil.copy(data, bundle.folder)
    bundle.add("frame.int8.onnx", "onnx", graph="frame", precision="int8")
    with pytest.raises(BackendError, match=r"expected INT8 kernels for frame.int8.onnx.*every layer in FP32"):
        open_session(bundle, eight_bit(bundle), "openvino")


def test_the_convolution_kernel_leaves_quantized_layers_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, prefer = [], openvino.prefer_convolution_kernel
    monkeypatch.setattr(openvino, "prefer_convolution_kernel",
                        lambda graph: counts.append(prefer(graph, min_in_features=64)))
    bundle = Bundle.open(shutil.copytree(folder, tmp_path / "wide"))
    frames = {"frame": photo(90, 120)[None]}
    with OpenVINOSession(bundle, eight_bit(bundle)):
        pass
    add_eight_bits(bundle, wide=("backbone.blocks.0.mlp",))
    maps = []
    for preferred in (False, True):
        with OpenVINOSession(bundle, eight_bit(bundle), prefer_convolutions=preferred) as session:
            assert session._parts[0].computes_in_int8()
            maps.append(session.run(frames))
    assert counts == [4, 2], "only wide layers: the four readouts, then both of an MLP"
    assert relative(maps[1], maps[0]) < 5e-3, "the same up to values that round the other way"


@pytest.mark.parametrize("backend", CPU)
def test_weights_alone_in_eight_bits(folder: Path, tmp_path: Path, backend: str) -> None:
    """The products are those of an FP32 graph with the rounded weights: nobody quantizes activations by the way."""
    bundle = Bundle.open(shutil.copytree(folder, tmp_path / "weights"))
    add_eight_bits(bundle, weights_only=True)
    model = onnx.load(bundle.folder / "frame.int8.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        values, scale, _ = (onnx.numpy_helper.to_array(tensors[name]) for name in node.input)
        axis = node.attribute[0].i
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        model.graph.initializer.append(onnx.numpy_helper.from_array(values * scale.reshape(shape), node.output[0]))
        model.graph.node.remove(node)
    onnx.save(model, bundle.folder / "frame.fp32.onnx")
    bundle.add("frame.fp32.onnx", "onnx", graph="frame", precision="fp32")
    frames = {"frame": photo(90, 120)[None]}
    with (open_session(bundle, eight_bit(bundle), backend) as session,
          open_session(bundle, eight_bit(bundle, precision="fp32"), backend) as full):
        assert session.note == "with INT8 weights, in FP32"
        assert stage_notes(eight_bit(bundle)) == ()
        have, want = session.run(frames), full.run(frames)
    for name, value in want.items():
        np.testing.assert_allclose(have[name], value, atol=1e-4, err_msg=name)


def test_fp8_is_rounded_by_onnxruntime_and_refused_by_openvino(folder: Path) -> None:
    frame = photo(90, 120)
    with load(folder, precision="fp8") as runtime, load(folder, precision="fp32") as full:
        assert runtime.backend == "onnxruntime-cpu" and runtime.artifact.file == "frame.fp8.onnx"
        assert "not openvino: OpenVINO has no FP8 kernels" in runtime.reason and "rounded to FP8" in runtime.reason
        assert 1e-4 < relative(runtime(frame).maps, full(frame).maps) < 0.1
    with pytest.raises(BackendError, match=r"no FP8 kernels on a CPU.*use precision int8"):
        load(folder, "openvino", precision="fp8")
    bundle = Bundle.open(folder)
    with pytest.raises(BackendError, match="no FP8 kernels"):
        open_session(bundle, eight_bit(bundle, precision="fp8"), "openvino")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_the_cuda_provider_is_not_for_eight_bits(folder: Path, precision: str) -> None:
    bundle, cuda = Bundle.open(folder), backends.get("onnxruntime-cuda")
    assert cuda.candidates(bundle, "frame", precision) == []
    refusal = cuda.no_candidate(bundle, "frame", precision)
    assert refusal.cause is Cause.UNSUPPORTED and "would compute in FP32" in str(refusal)


def test_every_backend_that_can_run_them_has_a_stage(folder: Path) -> None:
    tasks = {str(task.id): task for task in stage_tasks(Bundle.open(folder))}
    eight = {name: task for name, task in tasks.items() if task.id.precision in ("int8", "fp8")}
    assert set(eight) == {
        "ONNX Runtime model int8", "ONNX Runtime frame int8", "ONNX Runtime frame fp8", "OpenVINO frame int8",
        "C++ runtime frame int8", "C++ runtime frame fp8",
    }
    for name, task in eight.items():
        if task.id.precision == "fp8":
            assert task.notes == (FP8_NOTE,), name
        else:
            assert task.notes == stage_notes(task.artifact), name
    assert not tasks["OpenVINO frame fp32"].notes


@pytest.mark.parametrize("name", ["OpenVINO frame int8", "ONNX Runtime frame fp8"])
def test_a_stage_is_judged_by_the_budget_of_eight_bits(folder: Path, name: str) -> None:
    bundle = Bundle.open(folder)
    (task,) = [task for task in stage_tasks(bundle) if str(task.id) == name]
    reference, _ = load_reference(bundle)
    budget, _ = load_budget(None)
    with task.open() as session:
        stage = compare(task.id, lambda batch: session.run({"frame": batch}), reference, budget)
    assert set(stage.heads) == {"depth", "normals", "alpha"} and stage.compared.images
    limits = budget["int8"]["depth"]
    over = [metric for metric, limit in limits.items() if stage.heads["depth"][metric] > limit]
    assert {finding.metric for finding in stage.findings if finding.head == "depth" and finding.metric} == set(over)


@pytest.mark.parametrize(
    ("flags", "machine", "words"),
    [("avx2 avx512f avx512_vnni", "x86_64", "with AVX-512 VNNI"), ("avx2 avx_vnni", "x86_64", "with AVX-VNNI"),
     ("avx2", "x86_64", "without VNNI"), ("asimd", "aarch64", ""), ("", "x86_64", "")],
)
def test_the_note_says_which_processor_judged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, flags: str, machine: str, words: str
) -> None:
    monkeypatch.setattr(processor, "flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    artifact = eight_bit(Bundle.open(folder))
    note = " ".join(stage_notes(artifact))
    assert (words in note and "may saturate in 16 bits" in note) if words else not note
    assert session_note(artifact).startswith("in INT8; ")


@pytest.mark.slow  # exports a graph of opset 20
def test_onnxruntime_runs_the_format_of_opset_20_too(folder: Path, tmp_path: Path) -> None:
    model = lively_model()
    bundle = Bundle.open(shutil.copytree(folder, tmp_path / "opset"))
    export_frame(model, model.contract(), bundle.folder / "frame.fp32.onnx", opset=20)
    bundle.add("frame.fp32.onnx", "onnx", graph="frame", precision="fp32")
    add_eight_bits(bundle)
    assert eight_bit(bundle).details.opset == 20 and eight_bit(Bundle.open(folder)).details.opset == 23
    frames = {"frame": photo(90, 120)[None]}
    for backend in CPU:
        with open_session(bundle, eight_bit(bundle), backend) as session, open_session(
                bundle, eight_bit(bundle, precision="fp32"), backend) as full:
            assert 1e-4 < relative(session.run(frames), full.run(frames)) < 0.1
