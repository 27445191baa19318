"""The real bindings of TensorRT and TensorRT-RTX have every name, signature and enumeration that the project uses.

TensorRT's bindings are on PyPI, but its libraries are not. Here the bindings load libraries that have the functions
that they link to, and nothing in them.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = {
    "trt.ProfilingVerbosity.DETAILED", "trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10", "trt.nptype",
    "trt.ILogger", "IBuilderConfig.set_preview_feature()", "INetworkDefinition.get_layer()",
    "IAttention.decomposable()", "ICudaEngine.create_execution_context()",
    "IExecutionContext.update_device_memory_size_for_shapes()",
    "IExecutionContext.set_device_memory()", "IExecutionContext.execute_async_v3()",
    "OnnxParserRefitter.refit_from_file()", "ISerializationConfig.clear_flag()",
    "EngineInspector.get_engine_information()",
}
GUARDED = {
    "trt.BuilderFlag.REQUIRE_USER_ALLOCATION", "trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE", "IRuntimeCache.serialize()",
    "trt.DynamicShapesKernelSpecializationStrategy.EAGER", "IExecutionContext.is_stream_capturable()",
    "IRuntimeConfig.cuda_graph_strategy()", "IRuntimeConfig.set_runtime_cache()",
}
"""Of TensorRT-RTX alone."""


def check(module: str, root: Path = ROOT, libraries: Path | None = None) -> dict[str, Any]:
    """What `check_bindings` finds in the sources under `root`, in a process of its own.

    `libraries` is a folder with the binding and its libraries; None for an installed one.
    """
    paths = [str(path) for path in (root, ROOT, libraries) if path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment["POLYGRAPHY_USE_TENSORRT_RTX"] = str(int(module == "tensorrt_rtx"))
    if libraries:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    command = [sys.executable, "-m", "tests.backends.check_bindings", module, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_tensorrt_rtx_has_what_is_used() -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("polygraphy")
    found = check("tensorrt_rtx")
    assert found["problems"] == []
    assert SHARED | GUARDED <= set(found["checked"])
    assert found["configured"] == 12


FAULTS = [
    ("backends/stream_worker.py", ".set_device_memory(", ".set_device_memory_v2(",
     "IExecutionContext.set_device_memory_v2 does not exist"),
    ("backends/stream_worker.py", ".execute_async_v3(self.stream)", ".execute_async_v3()",
     "IExecutionContext.execute_async_v3 needs stream_handle"),
    ("backends/tensorrt_session.py", "= trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE", "= trt.CudaGraphStrategy.WHOLE",
     "trt.CudaGraphStrategy.WHOLE does not exist"),
    ("backends/tensorrt_session.py", "config.dynamic_shapes_kernel_specialization_strategy = ", "config.kernels = ",
     "IRuntimeConfig.kernels cannot be set"),
    ("backends/tensorrt_session.py", "create_execution_context(config)", "create_execution_context(self._cache)",
     "ICudaEngine.create_execution_context takes a"),
    ("build/builder_process.py", "config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)",
     "config.set_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)", "IBuilderConfig.set_flag takes a BuilderFlag as flag"),
    ("build/builder_process.py", "engine = trt.Runtime(logger)", "engine = trt.Runtime()", "Runtime needs logger"),
    ("build/builder_process.py", 'arguments["strip_plan"]', 'arguments["strip_weights"]',
     "Polygraphy, {'weights': 'stripped'"),
]


def test_what_a_binding_lacks_is_found(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("polygraphy")
    shutil.copytree(ROOT / "dpt_deploy", tmp_path / "dpt_deploy", ignore=shutil.ignore_patterns("cpp", "__pycache__"))
    for file, old, new, _ in FAULTS:
        path = tmp_path / "dpt_deploy" / file
        source = path.read_text()
        assert old in source
        path.write_text(source.replace(old, new))
    problems = "\n".join(check("tensorrt_rtx", tmp_path)["problems"])
    assert [problem for *_, problem in FAULTS if problem not in problems] == []


def binding(requirement: str, folder: Path) -> Path:
    """The folder of TensorRT's unpacked bindings, from PyPI. Skips where they cannot be had."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--disable-pip-version-check", "--retries=1", "-d", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines() or ["pip downloaded nothing"]
        pytest.skip(f"{requirement} cannot be downloaded for this Python: {lines[-1]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    return folder


def make_libraries(extension: Path, folder: Path) -> None:
    """Compile shared libraries with the functions that an extension module links to. They return nothing."""
    def output(*command: str | Path) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    needed = re.findall(r"\(NEEDED\).*\[(libnv\S+)\]", output("readelf", "-d", extension))
    undefined = [line.split()[-1] for line in output("nm", "-D", "--undefined-only", extension).splitlines()
                 if line.split()[-2] == "U"]
    loaded = ctypes.CDLL(None)  # Python and the C library
    names = [name for name in undefined if "@" not in name and not hasattr(loaded, name)]
    assert needed and "createInferRuntime_INTERNAL" in names
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names))
    for library in needed:
        output("gcc", "-shared", "-fPIC", source, "-o", folder / library)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["10.14.*", "10.16.*", "11.*"])  # the oldest that may be installed, and later ones
def test_tensorrt_has_what_is_used(tmp_path: Path, version: str) -> None:
    pytest.importorskip("polygraphy")
    if missing := [tool for tool in ("gcc", "nm", "readelf") if not shutil.which(tool)]:
        pytest.skip(f"{', '.join(missing)} not installed")
    folder = binding(f"tensorrt_cu13_bindings=={version}", tmp_path)
    extension, = folder.glob("tensorrt_bindings/*.so")
    make_libraries(extension, folder)
    (folder / "tensorrt_bindings").rename(folder / "tensorrt")  # the package tensorrt re-exports the bindings
    found = check("tensorrt", libraries=folder)
    assert found["version"].startswith(version.rstrip("*"))
    assert found["problems"] == []
    assert set(found["checked"]) >= SHARED
    assert not GUARDED & set(found["checked"])
    assert found["configured"] == 12
