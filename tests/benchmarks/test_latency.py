"""The latency benchmark runs without a GPU, says what did not run and why, and judges what it timed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from benchmarks import latency, random_models
from benchmarks.contenders import contenders
from benchmarks.david_pipeline import DavidPipeline
from benchmarks.latency_report import plot, show
from benchmarks.pipeline import Unavailable
from benchmarks.pytorch_pipeline import count_flops, load_network
from benchmarks.results import RESULTS
from dpt_deploy import backends
from dpt_deploy.backends.device import compute_capability
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.manifest import Artifact, Manifest
from dpt_deploy.runtime import load
from tests.eight_bits import add_eight_bits
from tests.tiny import lively_model, photo

PEER = "DAViD-style pipeline, ONNX Runtime cpu"


def test_every_row_ran_or_says_why_not(tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = latency.LatencyConfig(
        tiny_bundle, frame_size=(90, 120), quick=True, out=tmp_path, json=True,
        contenders=("frame", "model fp32, NumPy", "PyTorch", "DAViD"))
    assert latency.main(config) == 0
    result = json.loads((tmp_path / "latency.json").read_text())
    assert json.loads(capsys.readouterr().out) == result, "--json prints the result and nothing else"
    rows = {row["name"]: row for row in result["rows"]}
    for row in rows.values():
        assert row["status"] == "ran" or row["reason"], row["name"]
    ran = {name: row for name, row in rows.items() if row["status"] == "ran"}
    judged = ("onnxruntime-cpu frame fp32", "openvino frame fp32", "PyTorch eager fp32 cpu")
    assert {*judged, PEER} <= set(ran)
    for name in judged:
        assert ran[name]["parity"]["status"] == "passed", ran[name]["parity"]
        assert not ran[name]["stable"], "two calls are too few to call anything stable"
        assert {"median", "p10", "p90", "interval"} == set(ran[name]["times_faster_than_peer"])
    assert ran["onnxruntime-cpu frame fp32"]["sha256"] == Bundle.open(tiny_bundle).find(
        "onnx", graph="frame", precision="fp32")[0].sha256
    assert {"pre", "engine", "post"} == set(ran[PEER]["parts_ms"]) and result["peer"] == PEER and ran[PEER]["peer"]
    if compute_capability() is None:
        assert rows["onnxruntime-cuda frame fp32"]["status"] == "not run"
        assert "no GPU" in rows["DAViD-style pipeline, ONNX Runtime cuda"]["reason"]
    assert (tmp_path / "latency.png").stat().st_size > 1000
    committed = json.loads((RESULTS / "cpu_latency.json").read_text())
    assert set(result) == set(committed), "result files keep their format"
    same = next(row for row in committed["rows"] if row["name"] == "onnxruntime-cpu frame fp32")
    assert set(ran["onnxruntime-cpu frame fp32"]) == set(same)


def test_eight_bits_are_rows_with_verdicts_of_their_own(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(shutil.copytree(tiny_bundle, tmp_path / "eight"))
    add_eight_bits(bundle, "int8", ("model", "frame"))
    add_eight_bits(bundle, "fp8")
    chosen = {row.name: row for row in contenders(bundle) if row.precision in ("int8", "fp8") and row.device == "cpu"}
    assert set(chosen) == {
        *(f"{backend} {graph}" for backend in ("openvino", "onnxruntime-cpu")
          for graph in ("frame int8", "model int8, NumPy steps")),
        "onnxruntime-cpu frame fp8", "cpp frame int8", "cpp frame fp8",
    }
    config = latency.LatencyConfig(frame_size=(90, 120), rounds=2, warm_up=1, quick=True)
    wanted = ("openvino frame int8", "onnxruntime-cpu frame fp8")
    result = latency.measure(bundle, config, [chosen[name] for name in wanted])
    rows = {row["name"]: row for row in result["rows"]}
    for name in wanted:
        assert rows[name]["status"] == "ran" and rows[name]["parity"]["budget"] == "int8", rows[name]
        assert rows[name]["parity"]["heads"]["depth"]["abs_rel"] > 1e-4
    assert "in INT8; this processor has" in rows["openvino frame int8"]["note"]


def test_calibration_images_are_for_the_default_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"expected no BUNDLE.*--precision int8 --calibrate"):
        latency.main(latency.LatencyConfig(tiny_bundle, calibrate=tmp_path))


def test_calibration_images_are_passed_on_to_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export is not run: it takes minutes."""
    folder = tmp_path / "engines" / "bench-vitb"
    bundle = Bundle.create(folder, Manifest(name="bench-vitb", contract=Contract().to_json()))
    bundle.save()
    (folder / "parity.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    commands = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        commands.append(command)
        (folder / "parity.json").write_text("{}")
        if "int8" in command:
            (folder / "frame.int8.onnx").write_bytes(b"graph")
            Bundle.open(folder).add("frame.int8.onnx", "onnx", graph="frame", precision="int8")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(random_models.subprocess, "run", run)
    monkeypatch.setattr("dpt_deploy.model.create_multitask_dpt_model", lambda backbone: None)
    monkeypatch.setattr("dpt_deploy.model.save_checkpoint", lambda path, model: None)
    assert random_models.vit_base_bundle() == Path("engines") / "bench-vitb" and not commands, "it is there"
    random_models.vit_base_bundle(tmp_path / "images")
    int8 = ["--precision", "int8", "--calibrate", str(tmp_path / "images"), "--no-search"]
    assert len(commands) == 1 and commands[0][-5:] == int8
    random_models.vit_base_bundle(tmp_path / "images")
    assert len(commands) == 1, "it has such graphs"
    bundle.save()  # without them
    (folder / "parity.json").unlink()
    random_models.vit_base_bundle(tmp_path / "images")
    assert "--precision" not in commands[1] and commands[2][-5:] == int8, "half precision comes first"


def test_the_export_finds_the_repository_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    subprocess.run([sys.executable, "-c", "import dpt_deploy.export"], cwd=tmp_path, env=random_models._environment(),
                   check=True)


def test_a_committed_result_can_be_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = json.loads((RESULTS / "cpu_latency.json").read_text())
    show(result)
    assert "1.13 (1.10 to 1.17)" in capsys.readouterr().out
    plot(result, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_the_peer_has_the_same_weights(tiny_bundle: Path) -> None:
    """On a square frame of the network's input size the resize rule does not matter, and the maps are ours."""
    frames = photo(160, 160)[None]
    have = DavidPipeline(Bundle.open(tiny_bundle))(frames)
    with load(tiny_bundle, "onnxruntime-cpu") as runtime:
        want = runtime.session.run({"frame": frames})
    for name, value in want.items():
        np.testing.assert_allclose(have[name], value, atol=2e-4)


def test_pytorch_has_the_same_weights(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    want = lively_model().state_dict()
    for name, value in load_network(bundle).state_dict().items():
        np.testing.assert_array_equal(value.numpy(), want[name].numpy(), err_msg=name)
    assert count_flops(bundle) > 1e8


def test_two_engines_of_one_graph_are_two_rows(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    engine = bundle.find("engine", graph="frame")[0]
    (own_bundle / "other.engine").write_bytes((own_bundle / engine.file).read_bytes())
    bundle.add("other.engine", "engine", graph="frame", precision=engine.precision, details=engine.details)
    rows = contenders(bundle)
    assert len({row.name for row in rows}) == len(rows)
    assert len([row for row in rows if row.artifact and "other.engine" in row.name + row.artifact.file]) == 1


def test_a_registered_backend_becomes_a_row(tiny_bundle: Path) -> None:
    class Toy(backends.Backend):
        name, title = "toy", "Toy"

        def unavailable(self) -> None:
            return None

        def candidates(self, bundle: Bundle, graph: str, precision: str | None) -> list[Artifact]:
            if (graph, precision) != ("frame", "fp32"):
                return []
            return bundle.find("onnx", graph="frame", precision="fp32")

        def open(self, bundle: Bundle, artifact: Artifact, options: backends.SessionOptions) -> backends.Session:
            return backends.get("onnxruntime-cpu").open(bundle, artifact, options)

    bundle = Bundle.open(tiny_bundle)
    config = latency.LatencyConfig(frame_size=(90, 120), rounds=2, warm_up=1, quick=True)
    backends.register(Toy())
    try:
        chosen = [contender for contender in contenders(bundle) if contender.name.startswith("toy")]
        (row,) = latency.measure(bundle, config, chosen)["rows"]
    finally:
        backends.unregister("toy")
    assert row["name"] == "toy frame fp32" and row["status"] == "ran" and row["parity"]["status"] == "passed"
    assert not [contender for contender in contenders(bundle) if contender.name.startswith("toy")]


def test_a_backend_without_an_artifact_says_what_to_run(own_bundle: Path) -> None:
    (row,) = [row for row in contenders(Bundle.open(own_bundle)) if row.name.startswith("tensorrt ")]
    with pytest.raises(Unavailable, match=r"no TensorRT engine.*build"):
        row.open()


def test_the_first_line_of_any_exception_is_the_reason(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's exceptions have no narrower base class than Exception."""
    calls = []

    def fail(*_: object) -> dict:
        calls.append(1)
        if len(calls) == last:
            raise Fail("[ONNXRuntimeError] : 1 : FAIL : no kernel\nsecond line")
        return {}

    monkeypatch.setattr(DavidPipeline, "__call__", fail)
    bundle = Bundle.open(tiny_bundle)
    config = latency.LatencyConfig(frame_size=(90, 120), rounds=2, warm_up=1, quick=True)
    peers = [contender for contender in contenders(bundle) if contender.name == PEER]
    for last in (1, 3):  # when it is opened, and in a timed call
        calls.clear()
        row = latency.measure(bundle, config, peers)["rows"][0]
        assert row["reason"].endswith("no kernel") and row["status"] == "not run" and len(calls) == last
