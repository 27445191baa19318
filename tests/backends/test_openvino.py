"""OpenVINO sessions: the maps they give, the arithmetic they use, and what they refuse."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dpt_deploy import backends
from dpt_deploy.backends import device
from dpt_deploy.backends import openvino as backend
from dpt_deploy.backends.openvino import OpenVINOSession, ignored_plan, reduced_units
from dpt_deploy.core.bundle import Artifact, Bundle
from dpt_deploy.core.errors import BackendError, BadBundle, ContractError, MissingPackage
from dpt_deploy.core.manifest import PrecisionPlan
from dpt_deploy.core.verdict import ParityReport, Stage
from dpt_deploy.parity import compare, load_budget
from dpt_deploy.parity.reference import FILE, Reference
from dpt_deploy.runtime import load
from tests.tiny import change_details, open_session, photo

pytest.importorskip("openvino", reason="OpenVINO is not installed")


def artifact(bundle: Bundle, graph: str = "frame", precision: str = "fp32") -> Artifact:
    return bundle.find("onnx", graph=graph, precision=precision)[0]


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> OpenVINOSession:
    bundle = Bundle.open(tiny_bundle)
    with open_session(bundle, artifact(bundle), "openvino", threads=2) as opened:
        yield opened


@pytest.mark.parametrize("graph", ["frame", "model"])
def test_fp32_is_within_the_fp32_budgets(tiny_bundle: Path, graph: str) -> None:
    bundle = Bundle.open(tiny_bundle)
    reference, (budget, _) = Reference.load(tiny_bundle / FILE, bundle.contract), load_budget(None)
    with open_session(bundle, artifact(bundle, graph), "openvino") as session:
        (name,) = session.inputs
        identity = backends.get("openvino").stage_id(artifact(bundle, graph))
        stage = compare(identity, lambda batch: session.run({name: batch}), reference, budget)
    assert stage.passed, stage.reasons


def test_fp16_weights_in_fp32_arithmetic_are_within_the_fp16_budgets(tiny_bundle: Path) -> None:
    """The way of a processor without FP16 units, asked for by name."""
    bundle = Bundle.open(tiny_bundle)
    reference, (budget, _) = Reference.load(tiny_bundle / FILE, bundle.contract), load_budget(None)
    with open_session(bundle, artifact(bundle, precision="fp16"), "openvino", precision="fp32") as session:
        identity = backends.get("openvino").stage_id(artifact(bundle, precision="fp16"))
        stage = compare(identity, lambda batch: session.run({"frame": batch}), reference, budget)
    assert stage.passed, stage.reasons


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_convolution_kernel_gives_the_same_maps(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    bundle, counts = Bundle.open(tiny_bundle), []

    def counted(graph: object) -> None:
        counts.append(prefer(graph, min_in_features=64))

    prefer = backend.prefer_convolution_kernel
    monkeypatch.setattr(backend, "prefer_convolution_kernel", counted)
    frames, maps = photo(90, 120)[None], []
    for preferred in (False, True):
        with OpenVINOSession(bundle, artifact(bundle, precision=precision), "fp32",
                             prefer_convolutions=preferred) as session:
            maps.append(session.run({"frame": frames}))
    assert len(counts) == 1 and counts[0] > 0
    for name, want in maps[0].items():
        np.testing.assert_allclose(maps[1][name], want, atol=2e-5, err_msg=name)


def test_the_convolution_kernel_takes_the_identity_along() -> None:
    """As a step of its own it would cost time; and an overflow must not be hidden by what only picks a kernel."""
    import openvino
    from openvino import opset13 as ops

    weight = np.random.default_rng(0).standard_normal((4096, 96)).astype(np.float32)
    x = ops.parameter([1, 40, 4096], np.float32)
    y = ops.add(ops.matmul(x, ops.constant(weight), False, False), ops.constant(np.ones((1, 1, 96), np.float32)))
    graph = openvino.Model([y], [x], "linear")
    assert backend.prefer_convolution_kernel(graph) == 1
    compiled = backend.shared_core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    layers = [node.get_rt_info()["layerType"].astype(str) for node in compiled.get_runtime_model().get_ordered_ops()]
    assert "FullyConnected" in layers and not {"PRelu", "Relu", "Eltwise", "Subgraph"} & set(layers), layers
    values = np.random.default_rng(1).standard_normal((1, 40, 4096)).astype(np.float32)
    values[0, 3, 5], values[0, 7, 5], values[0, 9, 5] = np.nan, np.inf, -np.inf
    have = compiled([values])[0]
    with np.errstate(invalid="ignore"):
        want = values @ weight + 1
    np.testing.assert_allclose(have, want, atol=1e-3)
    assert np.isnan(have[0, 3]).all() and np.isinf(have[0, 7]).all() and np.isinf(have[0, 9]).all()


def test_reduced_precision_leaves_the_resize_alone(tiny_bundle: Path) -> None:
    """In BF16 throughout, pixel positions collapse and rows of the resize are NaN; a wide frame shows it."""
    bundle = Bundle.open(tiny_bundle)
    if "bf16" not in backend.reduced_units():
        pytest.skip("this processor has no BF16 units")
    frame = {"frame": photo(70, 1500)[None]}
    with open_session(bundle, artifact(bundle), "openvino", precision="bf16") as reduced, \
            open_session(bundle, artifact(bundle), "openvino") as full:
        assert "BF16" in reduced.note
        have, want = reduced.run(frame), full.run(frame)
    for name, value in have.items():
        assert np.isfinite(value).all(), name
        assert not np.array_equal(value, want[name]), "it computed in FP32"
    assert np.median(np.abs(have["depth"] / want["depth"] - 1)) < 0.02


def test_bf16_is_a_choice_of_the_user(tiny_bundle: Path) -> None:
    if "bf16" not in backend.reduced_units():
        pytest.skip("this processor has no BF16 units")
    with load(tiny_bundle, "openvino", precision="bf16") as runtime:
        assert runtime.artifact.file == "frame.fp32.onnx" and runtime.session.computes == "bf16"
        assert "in BF16" in runtime.reason
    with load(tiny_bundle, "openvino") as runtime:
        assert runtime.session.computes != "bf16"


@pytest.mark.parametrize(("units", "words"), [((), "neither BF16 nor FP16 units"), (("bf16",), "has only BF16 units")])
def test_arithmetic_that_the_processor_lacks_is_refused(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, units: tuple[str, ...], words: str
) -> None:
    """OpenVINO itself takes the hint, and computes in another type without a word."""
    monkeypatch.setattr(backend, "reduced_units", lambda: units)
    with pytest.raises(BackendError, match=rf"FP16 units.*{words}.*precision fp32"):
        load(tiny_bundle, "openvino", precision="fp16")
    if not units:
        with load(tiny_bundle, "openvino") as runtime:
            assert re.search("(neither BF16 nor|no BF16 or) FP16 units", runtime.reason)


@pytest.mark.parametrize("computes", ["fp16", "bf16"])
def test_reduced_precision_of_a_frame_graph_without_convolutions_is_refused(computes: str) -> None:
    """Nothing tells its resizes, which stay in FP32, from its network."""
    import openvino
    from openvino import opset13 as ops

    def graph() -> openvino.Model:
        x = ops.parameter([1, 8], np.float32, name="x")
        y = ops.relu(x)
        x.output(0).set_names({"x"})
        y.output(0).set_names({"y"})
        return openvino.Model([y], [x], "no convolutions")

    core = backend.shared_core()
    with pytest.raises(BackendError, match=rf"{computes.upper()}.*convolutions.*none.*precision fp32"):
        backend._compile(core, graph(), computes, {}, frame=True)
    assert len(backend._compile(core, graph(), "fp32", {}, frame=True)) == 1


def test_fp16_is_the_default_only_where_parity_passed_it(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "reduced_units", lambda: ("bf16", "fp16"))
    bundle = Bundle.open(own_bundle)
    half = artifact(bundle, precision="fp16")
    stage = Stage(backends.get("openvino").stage_id(half), "passed", half.sha256)
    for change, expected in (({}, "fp16"), ({"status": "failed"}, "fp32"), ({"sha256": "0" * 64}, "fp32")):
        report = ParityReport((dataclasses.replace(stage, **change),), {"fp32": {}, "fp16": {}}, "default", ())
        (own_bundle / "parity.json").write_text(json.dumps(report.to_json()))
        with load(own_bundle, "openvino") as runtime:
            assert runtime.artifact.precision == expected


def test_it_is_the_first_choice_on_a_processor(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.compute_capability() is not None:
        pytest.skip("a GPU is visible here, so that another backend is taken")
    with load(tiny_bundle) as runtime:
        assert runtime.backend == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    with load(tiny_bundle) as runtime:
        assert runtime.backend == "onnxruntime-cpu"
        assert "not openvino" in runtime.reason and "openvino" in runtime.reason
    with pytest.raises(BackendError, match=r"openvino.*pip install .*openvino"):
        load(tiny_bundle, "openvino")
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(MissingPackage):
        open_session(bundle, artifact(bundle), "openvino")


def test_chosen_outputs_and_foreign_arrays(session: OpenVINOSession) -> None:
    frames = photo(64, 70)[None]
    everything = session.run({"frame": frames})
    assert list(everything) == ["depth", "normals", "alpha"]
    some = session.run({"frame": torch.from_numpy(frames)}, ["alpha", "depth"])
    assert list(some) == ["alpha", "depth"]
    frames.flags.writeable = False
    for name, value in (some | session.run({"frame": frames}, ["normals"])).items():
        np.testing.assert_array_equal(value, everything[name])
    with pytest.raises(ContractError, match="CUDA stream"):
        session.run({"frame": frames}, stream=1)


def test_an_answer_is_the_callers_own(session: OpenVINOSession) -> None:
    """Its memory must not be that which the next call writes into."""
    one = session.run({"frame": photo(64, 70, 1)[None]})
    kept = {name: value.copy() for name, value in one.items()}
    session.run({"frame": photo(64, 70, 2)[None]})
    for name, value in one.items():
        np.testing.assert_array_equal(value, kept[name])


def test_many_threads_get_their_own_results(session: OpenVINOSession) -> None:
    frames = [{"frame": photo(80 + 8 * i, 100, i)[None]} for i in range(4)]
    want = [session.run(frame) for frame in frames]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        have = list(pool.map(session.run, frames * 6))
    for i, maps in enumerate(have):
        for name, value in maps.items():
            np.testing.assert_allclose(value, want[i % 4][name], atol=1e-5)


def test_files_that_do_not_fit_are_refused(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    wrong = artifact(bundle, "model").model_copy(update={"graph": "frame"})
    with pytest.raises(ContractError, match="expected inputs and outputs"):
        open_session(bundle, wrong, "openvino")
    contract = bundle.manifest.contract
    bundle.update(contract=contract | {"mean": [0.4, 0.5, 0.5]})
    with pytest.raises(ContractError, match="contract embedded in the graph differs"):
        open_session(bundle, artifact(bundle), "openvino")
    bundle.update(contract=contract)
    (own_bundle / "frame.fp32.onnx").write_bytes(b"not a graph")
    with pytest.raises(BadBundle, match=r"does not match manifest\.json"):
        open_session(bundle, artifact(bundle), "openvino")
    changed = bundle.add("frame.fp32.onnx", "onnx", graph="frame", precision="fp32")
    with pytest.raises(BadBundle, match=r"frame\.fp32\.onnx is not a valid ONNX file"):
        open_session(bundle, changed, "openvino")


def test_a_plan_that_it_cannot_honour_is_refused(own_bundle: Path) -> None:
    """In FP16 it would compute all of the network in FP16, whatever the plan keeps in FP32."""
    bundle = Bundle.open(own_bundle)
    half = artifact(bundle, precision="fp16")
    plan = PrecisionPlan("fp16", (*PrecisionPlan.fp32, "residual", "decoder.fusion.2"))
    changed = change_details(bundle, half, plan=plan)
    assert ignored_plan(half, "fp16") is None and ignored_plan(changed, "fp32") is None
    assert "keeps 2 modules in FP32 (residual, decoder.fusion.2)" in ignored_plan(changed, "fp16")
    bundle.save()
    if "fp16" in reduced_units():
        with pytest.raises(BackendError, match="keeps 2 modules in FP32"):
            load(own_bundle, backend="openvino", precision="fp16")
        task = next(task for task in backends.get("openvino").stages(bundle) if task.artifact.precision == "fp16")
        with pytest.raises(BackendError, match="keeps 2 modules"):
            task.open()


def test_a_closed_session_says_so(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    with open_session(bundle, artifact(bundle), "openvino") as opened:
        pass
    opened.close()
    with pytest.raises(BackendError, match="closed"):
        opened.run({"frame": photo(64, 64)[None]})
