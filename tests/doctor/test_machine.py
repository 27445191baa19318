"""What the doctor says of a machine: tried and not listed, documented and not guessed."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from dpt_deploy.backends.tensorrt_faults import KNOWN_FAULTS, known_faults
from dpt_deploy.doctor import machine as doctor


def by_subject(checks):
    return {check.subject: check for check in checks}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(doctor.machine, "compute_capability", lambda: None)


def test_everything_is_looked_at(tmp_path, no_gpu):
    checks = by_subject(doctor.check_machine(tmp_path / "engines" / "not there yet"))
    assert {"Python", "driver", "CUDA", "GPU", "TensorRT", "TensorRT-RTX", "ONNX Runtime", "CPUExecutionProvider",
            "OpenVINO", "OpenCV", "PyTorch", "disk"} <= set(checks)
    assert checks["GPU"].status == "not checked"
    for name in ("OpenCV", "PyTorch", "CPUExecutionProvider"):
        assert checks[name].status == "ok", checks[name]
    for check in checks.values():
        assert check.finding
        assert check.remedy or check.status not in ("failed", "not installed"), check


def test_the_hand_written_graph_is_right():
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(doctor.doubling_graph())
    onnx.checker.check_model(model, full_check=True)
    from onnx.reference import ReferenceEvaluator

    assert ReferenceEvaluator(model).run(None, {"x": np.array([1, -3], np.float32)})[0].tolist() == [2, -6]


class Ort:
    """An ONNX Runtime that lists CUDA and falls back, fails, or answers wrongly."""

    __version__ = "1.0"

    def __init__(self, active, answer=(2.0, 4.0), error=None):
        self.active, self.answer, self.error = active, answer, error

    class SessionOptions:
        log_severity_level = 0

    def InferenceSession(self, graph, options, providers):
        if self.error:
            raise RuntimeError(self.error)
        return self

    def get_providers(self):
        return [self.active]

    def run(self, outputs, feeds):
        return [np.array(self.answer, np.float32)]


def test_a_listed_provider_that_falls_back_is_found(no_gpu, monkeypatch):
    check = doctor._check_provider(Ort("CPUExecutionProvider"), "CUDAExecutionProvider")
    assert check.status == "warning" and "falls back to CPU" in check.finding and "no NVIDIA GPU" in check.finding
    monkeypatch.setattr(doctor.machine, "compute_capability", lambda: "9.0")
    check = doctor._check_provider(Ort("CPUExecutionProvider"), "CUDAExecutionProvider")
    assert "libraries are not found" in check.finding and "pip install" in check.remedy


def test_a_provider_that_fails_or_computes_wrongly_is_not_ok():
    assert doctor._check_provider(Ort("CPUExecutionProvider", error="no kernel"), "CPUExecutionProvider").status == "failed"
    assert doctor._check_provider(Ort("CPUExecutionProvider", answer=(2.0, 5.0)), "CPUExecutionProvider").status != "ok"
    assert doctor._check_provider(Ort("CUDAExecutionProvider"), "CUDAExecutionProvider").status == "ok"


def test_a_broken_library_does_not_stop_the_doctor(monkeypatch):
    def broken(name):
        raise OSError(f"lib{name}.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "_imported", broken)
    (check,) = doctor._guarded(doctor.tensorrt_rtx)
    assert check.status == "failed" and "cannot open" in check.finding and "tensorrt-rtx" in check.remedy


def test_a_gpu_that_does_not_answer_does_not_stop_the_doctor(tmp_path, monkeypatch):
    cudart = pytest.importorskip("cuda.bindings.runtime")
    monkeypatch.setattr(doctor.machine, "compute_capability", lambda: "9.0")
    monkeypatch.setattr(cudart, "cudaGetDeviceProperties", lambda index: (0, type("Properties", (), {"name": "X"})))
    monkeypatch.setattr(cudart, "cudaMemGetInfo", lambda: (cudart.cudaError_t.cudaErrorECCUncorrectable, None, None))
    monkeypatch.setattr(doctor, "tensorrt", list)
    check = by_subject(doctor.check_machine(tmp_path))["gpu"]
    assert check.status == "failed" and "cudaErrorECCUncorrectable" in check.finding
    assert check.remedy == "nvidia-smi"


@pytest.mark.parametrize(
    ("version", "capability", "faults"),
    [
        ("8.5.1.7", "7.5", 1), ("10.0.0.6", "8.6", 1), ("10.0.1.6", "8.6", 0), ("10.3.0", "8.7", 1),
        ("10.4.0", None, 1), ("10.5.0", "8.9", 0), ("10.7.0.23", "8.9", 1), ("10.14.1.48", "9.0", 0),
        ("10.16.1.11", "12.0", 1), ("10.16.1.11", "9.0", 0), ("11.3.0.99", "9.0", 1), ("11.4.1.9", "12.0", 0),
        ("11.30.0", "9.0", 0),
    ],
)
def test_versions_with_a_documented_fault(version, capability, faults):
    assert len(known_faults(version, capability)) == faults


def test_a_fault_of_some_gpus_is_not_checked_without_one():
    (check,) = doctor.against("10.16.1.11", None)
    assert check.status == "not checked" and "12.0" in check.finding
    (check,) = doctor.against("10.16.1.11", "12.0")
    assert check.status == "failed" and "issues/4837" in check.finding and check.remedy
    assert doctor.against("11.3.0", "9.0")[0].status == "warning"
    assert doctor.against("11.4.1", "9.0")[0].status == "ok"


def test_every_fault_has_a_source():
    assert all(fault.source.startswith("https://") and fault.what for fault in KNOWN_FAULTS)


def test_little_disk_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1e9}))
    assert doctor.disk(tmp_path).status == "warning"


def test_the_command_prints_json_and_needs_no_torch(tmp_path):
    blocked = """
import importlib.util, runpy, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ("torch", "openvino") else real(name, *rest)
sys.argv = ["doctor", "--json"]
runpy.run_module("dpt_deploy.doctor", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["passed"] is True and found["bundle"] == []
    torch = next(check for check in found["machine"] if check["subject"] == "PyTorch")
    assert torch["status"] == "not installed" and "torch>=" in torch["remedy"]
