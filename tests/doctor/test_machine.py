"""What the doctor says of a machine: tried and not listed, documented and not guessed."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from dpt_deploy import backends
from dpt_deploy.backends import device
from dpt_deploy.backends.base import Check
from dpt_deploy.backends.onnxruntime import _check_provider, doubling_graph
from dpt_deploy.backends.tensorrt import documented_faults
from dpt_deploy.backends.tensorrt_faults import KNOWN_FAULTS, known_faults
from dpt_deploy.doctor import hardware as doctor


def by_subject(checks):
    return {check.subject: check for check in checks}


@pytest.mark.parametrize(
    ("flags", "words"),
    [("avx2 avx512_vnni amx_int8", "AMX-INT8 and AVX-512 VNNI: INT8 graphs can run several times as fast"),
     ("avx2", "no VNNI: INT8 graphs run, gain less, and 8-bit products may saturate"), ("", "measure INT8")],
)
def test_what_eight_bits_gain_on_this_processor_is_said(tmp_path, monkeypatch, no_gpu, flags, words):
    monkeypatch.setattr(doctor.processor, "flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(doctor.processor.platform, "machine", lambda: "x86_64")
    check = by_subject(doctor.check_machine(tmp_path))["eight bits"]
    assert words in check.finding and check.status == "ok" and not check.remedy


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(device, "compute_capability", lambda: None)


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
    model = onnx.load_from_string(doubling_graph())
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
    check = _check_provider(Ort("CPUExecutionProvider"), "CUDAExecutionProvider")
    assert check.status == "warning" and "falls back to CPU" in check.finding and device.NO_GPU in check.finding
    monkeypatch.setattr(device, "compute_capability", lambda: "9.0")
    check = _check_provider(Ort("CPUExecutionProvider"), "CUDAExecutionProvider")
    assert "libraries are not found" in check.finding and "pip install" in check.remedy


def test_a_provider_that_fails_or_computes_wrongly_is_not_ok():
    assert _check_provider(Ort("CPUExecutionProvider", error="no kernel"), "CPUExecutionProvider").status == "failed"
    assert _check_provider(Ort("CPUExecutionProvider", answer=(2.0, 5.0)), "CPUExecutionProvider").status != "ok"
    assert _check_provider(Ort("CUDAExecutionProvider"), "CUDAExecutionProvider").status == "ok"


def test_a_broken_library_does_not_stop_the_doctor(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError("libX.so: cannot open shared object file")

    monkeypatch.setattr(backends.get("tensorrt-rtx"), "diagnose", broken)
    monkeypatch.setattr(doctor, "_imported", broken)
    checks = by_subject(doctor.check_machine(tmp_path))
    for subject, package in (("TensorRT-RTX", "tensorrt_rtx"), ("OpenCV", "opencv-python"), ("PyTorch", "torch")):
        check = checks[subject]
        assert check.status == "failed" and "installed but broken" in check.finding and "cannot open" in check.finding
        assert package in check.remedy
    assert "disk" in checks


def test_a_gpu_that_does_not_answer_does_not_stop_the_doctor(tmp_path, monkeypatch):
    cudart = pytest.importorskip("cuda.bindings.runtime")
    monkeypatch.setattr(device, "compute_capability", lambda: "9.0")
    monkeypatch.setattr(cudart, "cudaGetDeviceProperties", lambda index: (0, type("Properties", (), {"name": "X"})))
    monkeypatch.setattr(cudart, "cudaMemGetInfo", lambda: (cudart.cudaError_t.cudaErrorECCUncorrectable, None, None))
    monkeypatch.setattr(backends.get("tensorrt"), "diagnose", list)
    check = by_subject(doctor.check_machine(tmp_path))["GPU"]
    assert check.status == "failed" and "cudaErrorECCUncorrectable" in check.finding
    assert check.remedy == "nvidia-smi"


def test_every_backend_is_asked(tmp_path, monkeypatch):
    for backend in backends.registered():
        monkeypatch.setattr(backend, "diagnose", lambda name=backend.name: [Check(name, "ok", "asked")])
    checks = [check for check in doctor.check_machine(tmp_path) if check.finding == "asked"]
    assert [check.subject for check in checks] == list(backends.names())


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
    (check,) = documented_faults("10.16.1.11", None)
    assert check.status == "not checked" and "12.0" in check.finding
    (check,) = documented_faults("10.16.1.11", "12.0")
    assert check.status == "failed" and "issues/4837" in check.finding and check.remedy
    assert documented_faults("11.3.0", "9.0")[0].status == "warning"
    assert documented_faults("11.4.1", "9.0")[0].status == "ok"


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


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch, capsys):
    from dpt_deploy.doctor.__main__ import DoctorConfig, main

    assert doctor.writable(tmp_path)[0].status == "ok"
    monkeypatch.setattr(doctor, "unwritable", lambda folder: f"cannot write {folder}: Permission denied. Advice.")
    (check,) = {check.finding: check for check in doctor.writable(tmp_path) if str(tmp_path) in check.finding}.values()
    assert check.status == "warning" and "commands write" in check.finding and "Permission denied" in check.remedy
    assert main(DoctorConfig()) == 0
    out = capsys.readouterr().out
    assert "output folder" in out.splitlines()[-1] and "warning" in out.splitlines()[-1]
