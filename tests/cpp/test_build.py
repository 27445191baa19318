"""`make cpp` and `cmake --install`: ABI, symbols, CMake and pkg-config packages, examples, no warnings."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import dpt_deploy
from tests.cpp.conftest import BUILDS, ROOT, SOURCES, run

CONSUMER_C = """
#include <dpt_runtime.h>
#include <stdio.h>
int main(void) {
    dpt_runtime *runtime = NULL;
    printf("%s %d\\n", dpt_version(), dpt_load("/no/such/bundle", NULL, &runtime));
    return 0;
}
"""
CONSUMER_CPP = """
#include <cstdio>
#include <dpt_runtime.hpp>
int main() {
    try {
        dpt::Runtime runtime("/no/such/bundle");
    } catch (const dpt::Error &error) {
        std::printf("%s %d\\n", dpt_version(), error.status());
    }
}
"""
CONSUMER_CMAKE = """
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES C CXX)
find_package(dpt_runtime 0.1 REQUIRED)
foreach(name c cpp)
  add_executable(consumer_${name} consumer.${name})
  target_link_libraries(consumer_${name} PRIVATE dpt_runtime::dpt_runtime)
endforeach()
"""


@pytest.fixture(scope="module")
def installed(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed release build, moved to another folder: no file may refer to the original one."""
    folder = tmp_path_factory.mktemp("cpp_install")
    run("cmake", "--install", library.parent, "--prefix", folder / "first")
    return (folder / "first").rename(folder / "moved")


def cached_folder(variable: str) -> Path:
    """A folder that CMake stored in the cache of the release build."""
    cache = (BUILDS / "release" / "CMakeCache.txt").read_text()
    folder = re.search(rf"^{variable}:\w+=(.+)$", cache, re.MULTILINE)
    assert folder, f"{variable} is not set"
    return Path(folder[1])


@pytest.fixture
def consumer(tmp_path: Path) -> Path:
    """A CMake project outside of this repository."""
    (tmp_path / "consumer.c").write_text(CONSUMER_C)
    (tmp_path / "consumer.cpp").write_text(CONSUMER_CPP)
    (tmp_path / "CMakeLists.txt").write_text(CONSUMER_CMAKE)
    return tmp_path


def test_header_compiles_as_c11_and_every_function_works_from_c(native):
    """The header is tested by the build, with -std=c11 -Wall -Wextra -Wpedantic -Werror and more."""
    commands = run("make", "-C", native, "--always-make", "--dry-run", "c_header").stdout
    line = next(line for line in commands.splitlines() if "c_header.c" in line and " -c " in line)
    assert {"-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror"} <= set(line.split())
    run(native / "c_header")


def test_cpp_header(native, toy_folder):
    run(native / "wrapper", toy_folder)


def test_sha256(native):
    found = run(native / "internals").stdout.split()
    messages = [bytes([ord("a") + size % 26]) * size for size in range(200)]
    assert found == [hashlib.sha256(message).hexdigest() for message in messages]


def test_only_the_declared_functions_are_exported(library):
    lines = run("nm", "-D", "--defined-only", library).stdout.splitlines()
    names = {line.split()[-1] for line in lines if line.split()[-2] != "A"}  # A: the version node
    header = (SOURCES / "include" / "dpt_runtime.h").read_text()
    declared = {f"{name}@@DPT_1" for name in re.findall(r"^DPT_API .*?(dpt_\w+)\(", header, re.MULTILINE)}
    assert len(declared) == 12
    assert names == declared


def test_soname_size_and_dependencies(library):
    facts = run("readelf", "-d", library).stdout
    assert "Library soname: [libdpt_runtime.so.1]" in facts
    assert "NODELETE" in facts
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", facts)
    assert all(re.match(r"lib(stdc\+\+|gcc_s|c|m|dl|pthread)\.so|ld-linux", name) for name in needed), needed
    assert library.resolve().stat().st_size < 1_000_000


def test_version_matches_the_python_package(library):
    assert f'#define DPT_VERSION "{dpt_deploy.__version__}"' in (SOURCES / "include" / "dpt_runtime.h").read_text()
    assert library.resolve().name == f"libdpt_runtime.so.1.{dpt_deploy.__version__}"


def test_consumer_through_find_package(installed, consumer):
    run("cmake", "-S", consumer, "-B", consumer / "build", f"-DCMAKE_PREFIX_PATH={installed}")
    run("cmake", "--build", consumer / "build")
    for name in ("c", "cpp"):
        assert run(consumer / "build" / f"consumer_{name}").stdout == f"{dpt_deploy.__version__} 2\n"


@pytest.mark.skipif(not shutil.which("pkg-config"), reason="needs pkg-config")
def test_consumer_through_pkg_config(installed, consumer):
    folder, = installed.rglob("pkgconfig")
    environment = os.environ | {"PKG_CONFIG_PATH": str(folder)}
    assert run("pkg-config", "--modversion", "dpt_runtime", env=environment).stdout.strip() == dpt_deploy.__version__
    flags = run("pkg-config", "--cflags", "--libs", "dpt_runtime", env=environment).stdout.split()
    path = next(flag[2:] for flag in flags if flag.startswith("-L"))
    for compiler, source in (("cc", "consumer.c"), ("c++", "consumer.cpp")):
        run(compiler, consumer / source, *flags, "-o", consumer / "out")
        assert run(consumer / "out", env=os.environ | {"LD_LIBRARY_PATH": path}).stdout.endswith(" 2\n")


def test_installed_files(installed):
    names = {path.relative_to(installed).as_posix().replace("lib/x86_64-linux-gnu", "lib")
             for path in installed.rglob("*") if not path.is_dir()}
    assert {"include/dpt_runtime.h", "include/dpt_runtime.hpp", "lib/libdpt_runtime.so", "lib/libdpt_runtime.so.1",
            "lib/cmake/dpt_runtime/dpt_runtimeConfig.cmake", "lib/pkgconfig/dpt_runtime.pc"} <= names
    for path in installed.rglob("*"):
        if path.suffix in (".cmake", ".pc", ".h", ".hpp"):
            assert str(ROOT) not in path.read_text(), path


def test_the_wheel_contains_the_sources():
    """Every tracked file of the C++ runtime is package data, so that users can build from an installed package."""
    tracked = subprocess.run(["git", "ls-files", "dpt_deploy/cpp"], cwd=ROOT, capture_output=True, text=True,
                             check=True).stdout.split()
    patterns = re.findall(r'"dpt_deploy" = \[(.*?)\]', (ROOT / "pyproject.toml").read_text())
    assert patterns == ['"cpp/**/*"']
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dpt_deploy").glob("cpp/**/*")}
    assert len(tracked) > 30
    assert set(tracked) <= shipped


@pytest.mark.skipif(not shutil.which("clang++"), reason="needs clang++")
def test_clang_reports_no_warning(build, toy_folder):
    folder = build("clang", "c_header", "wrapper")
    run(folder / "c_header")
    run(folder / "wrapper", toy_folder)


def test_examples_build_against_the_installed_runtime(installed, toy_folder, tmp_path):
    options = [f"-DCMAKE_PREFIX_PATH={installed}", f"-DSTB_INCLUDE_DIR={cached_folder('STB_INCLUDE_DIR')}"]
    for folder in ("c", "cpp"):
        run("cmake", "-S", ROOT / "examples" / folder, "-B", tmp_path / folder, *options)
        run("cmake", "--build", tmp_path / folder)
    assert "depth at the centre: 129.000 m" in run(tmp_path / "c" / "dpt_minimal", toy_folder).stdout
    usage = subprocess.run([tmp_path / "cpp" / "dpt_predict"], capture_output=True, text=True, check=False)
    assert usage.returncode == 2
    assert "BUNDLE IMAGE OUTPUT" in usage.stderr


def test_examples(library, tiny_folder, tmp_path):
    import cv2
    import numpy as np

    from dpt_deploy import load
    from dpt_deploy.parity.images import scene
    from tests.cpp.test_parity import assert_identical

    examples = library.parent / "examples"
    assert len((ROOT / "examples" / "c" / "minimal.c").read_text().splitlines()) <= 40
    done = run(examples / "c" / "dpt_minimal", tiny_folder)
    assert re.search(r"depth at the centre: [0-9.]+ m", done.stdout)

    image = scene(90, 130, 5)
    cv2.imwrite(str(tmp_path / "image.png"), image[..., ::-1])
    run(examples / "cpp" / "dpt_predict", tiny_folder, tmp_path / "image.png", tmp_path / "result")
    panel = cv2.imread(str(tmp_path / "result.png"))[..., ::-1]
    assert panel.shape == (90, 4 * 130, 3)
    np.testing.assert_array_equal(panel[:, :130], image)
    maps = {head: np.load(tmp_path / f"result.{head}.npy") for head in ("depth", "normals", "alpha")}
    with load(tiny_folder, backend="onnxruntime-cpu") as python:
        assert_identical(maps, python(image).maps)

    failed = subprocess.run([examples / "cpp" / "dpt_predict", tiny_folder, library, tmp_path / "x"],
                            capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "expected a PNG or JPEG image" in failed.stderr


def test_public_headers_include_only_standard_headers():
    for name in ("dpt_runtime.h", "dpt_runtime.hpp"):
        text = (SOURCES / "include" / name).read_text()
        found = re.findall(r"^#include (\S+)", text, re.MULTILINE)
        allowed = {"<stddef.h>", "<stdint.h>"} if name.endswith(".h") else {
            "<cstddef>", "<cstdint>", "<memory>", "<stdexcept>", "<string>", "<type_traits>", "<utility>", "<vector>",
            '"dpt_runtime.h"'}
        assert set(found) <= allowed


def test_the_build_found_the_headers():
    """System headers, or those that fetch_headers.sh downloaded."""
    folder = cached_folder("ONNXRUNTIME_INCLUDE_DIR")
    assert (folder / "onnxruntime_c_api.h").is_file()


@pytest.mark.parametrize(("version", "error"), [
    ("#define NV_TENSORRT_MAJOR 10 //!< TensorRT major version.\n#define NV_TENSORRT_MINOR 0\n",
     r"TensorRT 10\.1 or newer \(IExecutionContext::setDeviceMemoryV2\), but those in \S+ are of TensorRT 10\.0\. "
     r"Set -DTENSORRT_ROOT=FOLDER to a newer SDK"),
    ("", r"has no NvInferVersion\.h with a version"),
    ("#define NV_TENSORRT_MAJOR 10\n#define NV_TENSORRT_MINOR 1 //!< TensorRT minor version.\n", None),
    ("#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 0\n#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n"
     "#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE\n", None),
])
def test_cmake_refuses_tensorrt_before_10_1(tmp_path, version, error):
    sdk = tmp_path / "sdk" / "include"
    sdk.mkdir(parents=True)
    (sdk / "NvInfer.h").touch()
    (sdk / "NvInferVersion.h").write_text(version)
    options = [f"-DCUDA_INCLUDE_DIR={ROOT / 'tests' / 'cpp' / 'fake_tensorrt'}", "-DDPT_EXAMPLES=OFF"]
    options += [f"-D{name}={cached_folder(name)}" for name in ("ONNXRUNTIME_INCLUDE_DIR", "NLOHMANN_JSON_INCLUDE_DIR")]

    def configure(name, *more):
        return subprocess.run(["cmake", "-S", SOURCES, "-B", tmp_path / name, *options, *more], capture_output=True,
                              text=True, check=False)

    done = configure("build", f"-DTENSORRT_ROOT={sdk.parent}")
    if error is None:
        assert done.returncode == 0 and f"Building backend tensorrt: {sdk}" in done.stdout, done.stderr
        return
    assert done.returncode != 0
    assert re.search(error, " ".join(done.stderr.split()))
    without = configure("without", f"-DTENSORRT_ROOT={sdk.parent}", "-DTENSORRT_INCLUDE_DIR=OFF")
    assert without.returncode == 0 and "Not building backend tensorrt:" in without.stdout, without.stderr
