"""The benchmarks run where there is no GPU, say what did not run, and judge what they timed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from benchmarks import latency, scaling, throughput
from benchmarks.contenders import contenders, flops, network
from benchmarks.measure import Samples, doubts, drift, interleave, ratios
from benchmarks.peer import SquarePipeline
from dpt_deploy.backends import device
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadBundle
from dpt_deploy.runtime import load
from tests.tiny import lively_model, photo


def test_every_row_ran_or_says_why_not(tiny_bundle: Path, tmp_path: Path) -> None:
    config = latency.LatencyConfig(tiny_bundle, frame=(90, 120), quick=True, out=tmp_path,
                                   only=("frame", "model fp32, NumPy", "PyTorch", "DAViD"))
    assert latency.main(config) == 0
    result = json.loads((tmp_path / "latency.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    for row in rows.values():
        assert row["status"] == "ran" or row["reason"], row["name"]
    ran = {name: row for name, row in rows.items() if row["status"] == "ran"}
    assert {"onnxruntime-cpu frame fp32", "openvino frame fp32", "PyTorch eager fp32 cpu",
            "DAViD-style pipeline, ONNX Runtime cpu"} <= set(ran)
    for name in ("onnxruntime-cpu frame fp32", "openvino frame fp32", "PyTorch eager fp32 cpu"):
        assert ran[name]["parity"]["status"] == "passed", ran[name]["parity"]
        assert not ran[name]["stable"], "two runs are too few to call anything stable"
    assert ran["onnxruntime-cpu frame fp32"]["sha256"] == Bundle.open(tiny_bundle).find(
        "onnx", graph="frame", precision="fp32")[0].sha256
    assert {"pre", "engine", "post"} == set(ran["DAViD-style pipeline, ONNX Runtime cpu"]["parts_ms"])
    if device.compute_capability() is None:
        assert "no GPU" in rows["onnxruntime-cuda frame fp32"]["reason"]
    assert (tmp_path / "latency.png").stat().st_size > 1000
    assert {"processor", "versions", "date", "commit", "load"} <= set(result["machine"])


def test_the_peer_has_the_same_weights(tiny_bundle: Path) -> None:
    """On a square frame of the network's own size no resize rule matters, and the maps are ours."""
    frames = photo(160, 160)[None]
    have = SquarePipeline(Bundle.open(tiny_bundle))(frames)
    with load(tiny_bundle, "onnxruntime-cpu") as runtime:
        want = runtime.session.run({"frame": frames})
    for name, value in want.items():
        np.testing.assert_allclose(have[name], value, atol=2e-4)


def test_the_peers_network_is_the_bundles(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    want = lively_model().state_dict()
    for name, value in network(bundle).state_dict().items():
        np.testing.assert_array_equal(value.numpy(), want[name].numpy(), err_msg=name)
    assert flops(bundle) > 1e8


def test_rounds_are_interleaved_and_warm_up_is_not_counted() -> None:
    order: list[str] = []
    samples = interleave({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=1)
    assert order == ["a", "b"] * 4
    assert len(samples["a"].seconds) == len(samples["b"].seconds) == 3


def test_rounds_end_in_time_with_one_that_counts() -> None:
    samples = interleave({"a": lambda: None}, rounds=50, warm_up=10, until=0.0)
    assert len(samples["a"].seconds) == 1


def test_two_engines_of_one_graph_are_two_rows(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    engine = bundle.find("engine", graph="frame")[0]
    (own_bundle / "other.engine").write_bytes((own_bundle / engine.file).read_bytes())
    bundle.add("other.engine", "engine", graph="frame", precision=engine.precision, details=engine.details)
    rows = list(contenders(bundle))
    assert len({row.name for row in rows}) == len(rows)
    assert len([row for row in rows if row.artifact and "other.engine" in row.name + row.artifact.file]) == 1


def test_whatever_a_contender_raises_is_its_reason(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's exceptions have no base class but Exception."""

    calls = []

    def fail(*_: object) -> dict:
        calls.append(1)
        if len(calls) == last:
            raise Fail("[ONNXRuntimeError] : 1 : FAIL : no kernel\nsecond line")
        return {}

    monkeypatch.setattr(SquarePipeline, "__call__", fail)
    config = latency.LatencyConfig(tiny_bundle, frame=(90, 120), rounds=2, warm_up=1, quick=True, out=tmp_path,
                                   only=("DAViD",))
    for last in (1, 3):  # when it is loaded, and among the timed calls
        calls.clear()
        row = latency.measure(Bundle.open(tiny_bundle), config, say=lambda line: None)["rows"][0]
        assert row["reason"].endswith("no kernel") and row["status"] == "not run" and len(calls) == last


def test_percentiles_ratios_and_doubts() -> None:
    even = Samples([0.1] * 20)
    assert even.summary()["p50_ms"] == pytest.approx(100) and not doubts(even) and drift(even) == 0
    wide = Samples([0.1, 0.2] * 10)
    assert "spread" in doubts(wide)[0]
    assert "too few" in doubts(Samples([0.1] * 3))[0]
    assert drift(Samples([0.1] * 10 + [0.15] * 10)) == pytest.approx(0.5)
    assert ratios(Samples([0.1] * 4), Samples([0.4] * 4))["median"] == pytest.approx(4)


def test_the_interval_of_a_median_is_the_binomial_one() -> None:
    """Order statistics of the sign test: the 6th of 20 and its mirror image, and nothing from five."""
    rising = ratios(Samples([1.0] * 20), Samples([float(i) for i in range(1, 21)]))
    assert rising["interval"] == [6.0, 15.0]
    assert ratios(Samples([1.0] * 6), Samples([float(i) for i in range(1, 7)]))["interval"] == [1.0, 6.0]
    assert ratios(Samples([1.0] * 5), Samples([1.0] * 5))["interval"] is None


def test_throughput_of_batches_and_streams(tiny_bundle: Path, tmp_path: Path) -> None:
    config = throughput.ThroughputConfig(tiny_bundle, "onnxruntime-cpu", frame=(60, 80), batches=(1, 2), frames=3,
                                         rounds=1, out=tmp_path)
    assert throughput.main(config) == 0
    rows = json.loads((tmp_path / "throughput.json").read_text())["rows"]
    assert len(rows) == 4 and all(row["frames_per_s"] > 0 for row in rows)


def test_scaling_runs_each_point_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    config = scaling.ScalingConfig(tiny_bundle, ("onnxruntime-cpu",), ("64x80",), (2,), (), (), 1, tmp_path)
    assert scaling.main(config) == 0
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    assert [row["axis"] for row in rows] == ["frame", "batch"] and all(row["peak_mb"] > 0 for row in rows)


def test_scaling_without_a_bundle_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "results"
    with pytest.raises(BadBundle, match="no such folder"):
        scaling.main(scaling.ScalingConfig(tmp_path / "missing", out=out))
    assert not out.exists(), "an earlier result must stay"


def test_without_a_gpu_the_validation_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    if device.compute_capability() is not None:
        pytest.skip("a GPU is visible here")
    command = [sys.executable, "benchmarks/gpu_validation.py", tiny_bundle, "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert "no GPU is visible" in done.stderr and "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir()), "an earlier result must stay"
