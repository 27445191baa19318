"""The tests of the C++ runtime build for minutes. They run only if DPT_CPP_TESTS is set, as by `make cpp-test`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpt_deploy.backends.cpp import find_library, find_onnxruntime
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.manifest import Checkpoint, Manifest, PrecisionPlan

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
SOURCES = ROOT / "dpt_deploy" / "cpp"
BUILDS = ROOT / "build-cpp"

# The CMake options of each build of the native tests.
VARIANTS = {
    "tests": [],
    "address": ["-DDPT_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Sanitized"],
    "thread": ["-DDPT_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=Sanitized"],
    "clang": ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"],
    "libfuzzer": ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++", "-DDPT_FUZZER=ON",
                  "-DDPT_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Sanitized"],
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder unless `make cpp-test` runs them."""
    reason = None
    if not os.environ.get("DPT_CPP_TESTS"):
        reason = "run the tests of the C++ runtime with `make cpp-test`"
    elif not shutil.which("cmake") or not shutil.which("c++"):
        reason = "needs cmake and c++"
    elif find_library() is None:
        reason = "the C++ runtime is not built: run `make cpp`"
    if reason:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


def run(*command: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run a command. If it fails, its output is in the error message."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    output = f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{output}"
    return done


def build_variant(variant: str, *targets: str) -> Path:
    """Build `targets` of the native tests, or all of them, and return the build folder."""
    folder = BUILDS / variant
    environment = os.environ | {"DPT_CPP_HEADERS": os.environ.get("DPT_CPP_HEADERS") or str(BUILDS / "headers")}
    run("cmake", "-S", HERE, "-B", folder, *VARIANTS[variant], env=environment)
    chosen = ["--target", *targets] if targets else []
    run("cmake", "--build", folder, "--parallel", os.environ["DPT_CPP_TESTS"], *chosen)
    return folder


@pytest.fixture(scope="session")
def build() -> Callable[..., Path]:
    """`build_variant`."""
    return build_variant


@pytest.fixture(scope="session")
def native(build: Callable[..., Path]) -> Path:
    """The build folder of all native tests, without sanitizers."""
    return build("tests")


@pytest.fixture(scope="session")
def library() -> Path:
    """The libdpt_runtime that `make cpp` built."""
    found = find_library()
    assert found is not None
    return found


@pytest.fixture(scope="session", autouse=True)
def onnxruntime_library() -> Iterator[Path]:
    """The libonnxruntime of the installed wheel, set in the environment of all tests."""
    found = find_onnxruntime()
    assert found is not None, "the onnxruntime wheel contains no libonnxruntime.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPT_ONNXRUNTIME_LIBRARY", str(found))
        yield found


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle that tests share and must not change."""
    from tests.cpp.toy import make_toy

    folder = tmp_path_factory.mktemp("cpp") / "toy"
    make_toy(folder)
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Bundle:
    """A toy bundle that a test may change."""
    from tests.cpp.toy import make_toy

    return make_toy(tmp_path / "toy")


def export_tiny(folder: Path, **contract: object) -> Path:
    """Export a tiny random model whose maps vary over an image: both frame graphs and reference.npz."""
    from dpt_deploy.export.pytorch_reference import make_reference
    from dpt_deploy.parity.images import built_in
    from tests.tiny import export_frame, lively_model

    model = lively_model()
    chosen = dataclasses.replace(model.contract(), **contract)
    bundle = Bundle.create(
        folder, Manifest(name="tiny", contract=chosen.to_json(), checkpoint=Checkpoint(file="tiny.pth"))
    )
    make_reference(model, chosen, built_in()).save(folder / "reference.npz")
    bundle.add("reference.npz", "reference")
    for plan in (PrecisionPlan("fp32", ()), PrecisionPlan("fp16")):
        file = f"frame.{plan.precision}.onnx"
        export_frame(model, chosen, folder / file, plan)
        bundle.add(file, "onnx", graph="frame", precision=plan.precision)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny model, in FP32 and FP16, with reference.npz."""
    return export_tiny(tmp_path_factory.mktemp("cpp_tiny"), resize="letterbox")
