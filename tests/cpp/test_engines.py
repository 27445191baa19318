"""Engines: all checks before TensorRT loads an engine, with a fake backend module and a fake CUDA driver.

The TensorRT module itself runs with a fake of TensorRT and CUDA, which checks their rules for CUDA graphs. Nothing here
tests a module on a GPU; docs/cpp.md says what was tested.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpt_deploy.core.bundle import Bundle
from tests.cpp.conftest import ROOT
from tests.cpp.conftest import run as run_program
from tests.cpp.toy import PLAN, add_engine, toy_maps

PROGRAM = """
import json, sys
import numpy as np
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import DptError
from dpt_deploy.backends.cpp import CppSession, Frames, Maps
request = json.loads(sys.argv[1])
try:
    with CppSession(Bundle.open(request["bundle"]), **request["options"]) as session:
        frames = np.random.default_rng(0).integers(0, 256, request["shape"], np.uint8)
        if request["stream"]:
            depth = np.empty(frames.shape[:3], np.float32)
            n, h, w, _ = frames.shape
            session.check(session.library.dpt_infer_device(
                session.handle, Frames(frames.ctypes.data, n, h, w), Maps(depth=depth.ctypes.data), request["stream"]))
            maps = {"depth": depth}
        else:
            if request["format"] == "bgr":
                frames = frames[:, ::-1, :, ::-1].copy()[:, ::-1]  # bottom-up
            maps = session.infer(frames, request["format"])
        print(json.dumps({"reason": session.reason, "batch": session.largest_batch((64, 32)),
                          "sums": {head: float(array.sum(dtype=np.float64)) for head, array in maps.items()}}))
except DptError as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


@pytest.fixture
def run(native: Path, toy: Bundle, monkeypatch: pytest.MonkeyPatch):
    """Loads and runs the bundle in a process with the fake module and a fake GPU of compute capability 9.0."""

    def load(capability: str | None = "9.0", shape=(2, 16, 24, 3), stream: int = 0, folder: str = "fake",
             pixels: str = "rgb", environment: dict[str, str] | None = None, **options) -> dict:
        request = {"bundle": str(toy.folder), "options": options, "shape": shape, "stream": stream, "format": pixels}
        variables = os.environ | {"DPT_BACKEND_FOLDER": str(native / folder), "PYTHONPATH": str(ROOT)}
        if capability:
            variables |= {"LD_LIBRARY_PATH": str(native / "fake_cuda"), "FAKE_CAPABILITY": capability}
        done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(request)], env=variables | (environment or {}),
                              capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return load


def expected(shape: tuple[int, ...]) -> dict[str, float]:
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    maps = toy_maps(frames) | {"normals": np.ones(shape[:3])}
    return {head: float(array.sum(dtype=np.float64)) for head, array in maps.items()}


def test_a_compatible_engine_is_preferred(toy, run):
    file = add_engine(toy)
    result = run()
    assert result["reason"] == f"tensorrt runs {file}."
    assert result["sums"] == pytest.approx(expected((2, 16, 24, 3)), rel=1e-6)
    assert result["batch"] == 4  # at most 8192 pixels and 4 frames per batch
    assert run(precision="fp16", backend="tensorrt")["reason"] == f"tensorrt runs {file}, as requested."


def test_other_formats_and_strides_reach_the_module(toy, run):
    add_engine(toy)
    assert run(pixels="bgr")["sums"] == pytest.approx(expected((2, 16, 24, 3)), rel=1e-6)


def test_the_reason_contains_the_cuda_graph_status(toy, run):
    file = add_engine(toy)
    status = "No CUDA graphs: capture failed: operation not permitted."
    assert run(environment={"FAKE_CUDA_GRAPH_STATUS": status})["reason"] == f"tensorrt runs {file}. {status}"


def test_device_pointers_and_the_stream_reach_the_module(toy, run):
    add_engine(toy)
    assert run(stream=5)["sums"] == {"depth": pytest.approx(expected((2, 16, 24, 3))["depth"])}


@pytest.mark.parametrize(("details", "environment", "why"), [
    ({}, {"FAKE_VERSION": "11.5.0.1"},
     r"was built by tensorrt 11.4.0.23, but 11.5.0.1 is installed; an engine runs only on the version that built "
     r"it. Build it again: python -m dpt_deploy.build"),
    ({"compute_capability": "8.6"}, {},
     r"was built for a GPU of compute capability 8.6, but this one has 9.0. Build it again"),
    ({"serves": ["8.6", "12.0"]}, {},
     r"runs on GPUs of compute capability 8.6, 12.0, but this one has 9.0. Use TensorRT there: python -m "
     r"dpt_deploy.build [^;]* --builder tensorrt; meanwhile, backend onnxruntime-cuda"),
    ({"serves": ["7.5"]}, {}, r"runs on GPUs of compute capability 7.5, but this one has 9.0. Build it again"),
    ({"version_compatible": True}, {"FAKE_VERSION": "11.3.9.9"}, r"was built by tensorrt 11.4.0.23, but 11.3.9.9"),
    ({"weights": "stripped"}, {}, r"contains no weights; restore them with: python -m dpt_deploy.build .* --refit"),
    ({"made_from": "0" * 64}, {}, r"was built from an earlier frame.fp16.onnx, which has been exported again since"),
    ({}, {"FAKE_OPEN": "out of memory"},
     r"^tensorrt: frame.fp16.trt11.4-sm90.engine could not be loaded: out of memory. Build it again"),
])
def test_an_incompatible_engine_is_rejected(toy, run, details, environment, why):
    (toy.folder / "frame.fp16.onnx").write_bytes((toy.folder / "frame.fp32.onnx").read_bytes())
    toy.add("frame.fp16.onnx", "onnx", graph="frame", precision="fp16")
    file = add_engine(toy, **details)
    requested = run(backend="tensorrt", environment=environment)
    assert requested["error"] == "BackendError"
    assert file in requested["message"]
    assert re.search(why, requested["message"])
    chosen = run(environment=environment)  # without a requested backend, the next one runs
    assert chosen["reason"].startswith("onnxruntime-cpu runs frame.fp32.onnx; not tensorrt: " + file)


@pytest.mark.parametrize(("details", "environment"), [
    ({"version_compatible": True}, {"FAKE_VERSION": "11.10.0.1"}),
    ({"hardware_compatible": True, "compute_capability": "8.6"}, {}),
])
def test_an_engine_built_for_later_versions_or_newer_gpus_is_used(toy, run, details, environment):
    file = add_engine(toy, **details)
    assert run(environment=environment)["reason"] == f"tensorrt runs {file}."


def test_without_a_gpu(toy, run):
    add_engine(toy)
    requested = run(capability=None, backend="tensorrt", environment={"FAKE_VERSION": "1.0"})
    assert "No GPU is visible: use a machine with a GPU, or backend onnxruntime-cpu" in requested["message"]
    assert "not tensorrt: no GPU is visible;" in run(capability=None)["reason"]


def test_a_changed_engine(toy, run):
    (toy.folder / add_engine(toy)).write_bytes(PLAN[::-1])
    assert run()["error"] == "BadBundle"
    assert "Build it again: python -m dpt_deploy.build" in run()["message"]


@pytest.mark.parametrize("shape", [(5, 16, 16, 3), (1, 7, 16, 3), (1, 16, 65, 3), (3, 64, 64, 3)])
def test_shapes_outside_the_profile(toy, run, shape):
    file = add_engine(toy)
    result = run(shape=shape)
    assert result["error"] == "ContractError"
    assert (f"frame: {file} accepts shapes from [1, 8, 8, 3] to [4, 64, 64, 3] with at most 8192 pixels per batch, "
            f"received {list(shape)}") in result["message"]


def test_a_run_that_fails(toy, run):
    add_engine(toy)
    result = run(environment={"FAKE_RUN": "an illegal address"})
    assert result == {"error": "BackendError", "message": "tensorrt: could not run: an illegal address."}


def test_a_missing_module(toy, run):
    add_engine(toy)
    result = run(backend="tensorrt", folder="no_such_folder")
    assert result["error"] == "MissingPackage"
    assert "libdpt_backend_tensorrt.so is needed to run frame.fp16.trt11.4-sm90.engine" in result["message"]


@pytest.mark.parametrize("details", [
    {"profile": {"frame": {"min": [1, 8], "opt": [], "max": []}}},
    {"profile": {"frame": {"min": [], "opt": [], "max": []}}},
    {"profile": {}}, {"max_pixels": -1}, {"profile": {}, "max_pixels": None},
])
def test_malformed_profiles_do_not_crash(toy, run, details):
    add_engine(toy, **details)
    result = run()
    assert "sums" in result or result["error"] in ("ContractError", "BadBundle")


@pytest.mark.parametrize("builder", ["", "_rtx"])
def test_cuda_graphs_and_the_runtime_cache(native, tmp_path, builder):
    run_program(native / f"graphs{builder}", native / f"libfake_tensorrt{builder}.so", tmp_path)
    assert not list(tmp_path.glob(".*"))  # no temporary files are left
