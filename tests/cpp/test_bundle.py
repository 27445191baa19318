"""Invalid bundles: the C++ runtime rejects what the Python runtime rejects, with the same class of error."""

from __future__ import annotations

import json
import os
import subprocess

import onnx
import pytest

from dpt_deploy.backends.cpp import CppSession
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BackendError, BadBundle, ContractError, MissingPackage
from dpt_deploy.runtime import load
from tests.cpp.toy import FILE, edit_manifest, make_toy, toy_graph


def assert_rejected(bundle: Bundle, error: type[Exception], message: str, python: bool = True) -> None:
    """Both runtimes raise `error`; the C++ message matches `message`."""
    if python:
        with pytest.raises(error):
            load(bundle.folder, backend="onnxruntime-cpu", threads=1).close()
    with pytest.raises(error, match=message):
        CppSession(bundle, "onnxruntime-cpu", threads=1)


def test_a_changed_file(toy):
    path = toy.folder / FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert_rejected(toy, BadBundle, rf"{FILE} does not match manifest.json .*Export again: python -m "
                                    r"dpt_deploy.export toy.pth --out ")


def test_a_truncated_file(toy):
    path = toy.folder / FILE
    path.write_bytes(path.read_bytes()[:-1])
    assert_rejected(toy, BadBundle, "the file was modified, truncated or replaced")


def test_a_missing_file(toy):
    (toy.folder / FILE).unlink()
    assert_rejected(toy, BadBundle, rf"{FILE} is missing from the bundle")


def test_external_data_is_checked_too(tmp_path):
    bundle = make_toy(tmp_path / "toy")
    (bundle.folder / f"{FILE}.data").write_bytes(b"weights")
    bundle.add(f"{FILE}.data", "data")
    CppSession(bundle, "onnxruntime-cpu").close()
    (bundle.folder / f"{FILE}.data").write_bytes(b"Weights")
    assert_rejected(bundle, BadBundle, rf"{FILE}.data does not match manifest.json")


def test_another_format(toy):
    edit_manifest(toy.folder, lambda content: content.update(format=2))
    assert_rejected(toy, BadBundle, r"expected manifest format 1, received 2. Export the checkpoint again")


@pytest.mark.parametrize("change", [
    lambda content: content.pop("contract"),
    lambda content: content["artifacts"][0].pop("sha256"),
    lambda content: content["artifacts"][0].update(bytes="many"),
    lambda content: content["contract"].pop("mean"),
    lambda content: content["contract"].update(heads=["alpha", "depth"]),
    lambda content: content["contract"].update(heads=[]),
    lambda content: content["contract"].update(resize="crop"),
])
def test_a_malformed_manifest(toy, change):
    edit_manifest(toy.folder, change)
    assert_rejected(toy, BadBundle, "not a valid manifest of format 1 .*Export the checkpoint again")


def test_a_manifest_without_artifacts(toy):
    edit_manifest(toy.folder, lambda content: content.pop("artifacts"))
    assert_rejected(toy, BadBundle, "not a valid manifest of format 1", python=False)  # Python reads an empty bundle


def test_unknown_fields_are_ignored(toy):
    """A later version may add fields without changing the format."""
    edit_manifest(toy.folder, lambda content: content["artifacts"][0].update(added_later=1))
    CppSession(toy, "onnxruntime-cpu").close()


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "..", "a/b.onnx", ""])
def test_a_name_that_leads_out_of_the_folder(toy, name):
    edit_manifest(toy.folder, lambda content: content["artifacts"][0].update(file=name))
    assert_rejected(toy, BadBundle, "expected the name of a file in the bundle's folder, received", python=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"format": 1, "format"', "[" * 100_000])
def test_a_manifest_that_is_not_valid_json(toy, text):
    (toy.folder / "manifest.json").write_text(text)
    with pytest.raises(BadBundle, match=r"not a valid manifest"):
        CppSession(toy)


def test_no_manifest(toy):
    (toy.folder / "manifest.json").unlink()
    assert_rejected(toy, BadBundle, "expected a bundle, but it contains no manifest.json")


def test_a_graph_with_another_contract(tmp_path):
    bundle = make_toy(tmp_path / "toy")
    onnx.save(toy_graph(Contract(mean=(0.4, 0.5, 0.5))), bundle.folder / FILE)
    bundle.add(FILE, "onnx", graph="frame", precision="fp32")
    assert_rejected(bundle, ContractError, "the contract embedded in the graph differs from the one in manifest.json")


def test_a_graph_with_other_outputs(tmp_path):
    bundle = make_toy(tmp_path / "toy", outputs=("alpha", "depth", "normals"))
    message = "expected inputs and outputs frame, depth, normals, alpha, found frame, alpha"
    assert_rejected(bundle, ContractError, message)


def test_a_file_that_is_not_an_onnx_graph(toy):
    (toy.folder / FILE).write_bytes(b"no graph at all")
    toy.add(FILE, "onnx", graph="frame", precision="fp32")
    assert_rejected(toy, BackendError, "onnxruntime-cpu could not load .*Choose another precision or backend")


def test_a_precision_that_the_bundle_lacks(toy):
    with pytest.raises(BackendError, match=f"no ONNX file of the frame graph in bf16; its ONNX files are {FILE}"):
        CppSession(toy, precision="bf16", backend="onnxruntime-cpu")


def test_the_same_artefact_is_chosen_as_in_python(toy):
    onnx.save(toy_graph(toy.contract), toy.folder / "frame.fp16.onnx")
    toy.add("frame.fp16.onnx", "onnx", graph="frame", precision="fp16")
    for precision, file in ((None, FILE), ("fp16", "frame.fp16.onnx")):
        with (
            CppSession(toy, precision=precision) as session,
            load(toy.folder, backend="onnxruntime-cpu", precision=precision) as python,  # C++ has no OpenVINO
        ):
            assert session.reason.startswith(f"onnxruntime-cpu runs {file}")
            assert python.artifact.file == file


class TestOnnxRuntime:
    def test_a_missing_library(self, toy, monkeypatch):
        monkeypatch.setenv("DPT_ONNXRUNTIME_LIBRARY", "/no/such/libonnxruntime.so")
        with pytest.raises(MissingPackage, match=r"/no/such/libonnxruntime.so: cannot open.*Install ONNX Runtime 1.22"):
            CppSession(toy, "onnxruntime-cpu")

    def test_no_backend_can_run(self, toy, monkeypatch):
        monkeypatch.setenv("DPT_ONNXRUNTIME_LIBRARY", "/no/such/libonnxruntime.so")
        with pytest.raises(BackendError) as caught:
            CppSession(toy)
        lines = str(caught.value).splitlines()
        assert lines[0].endswith("toy: no backend can run this bundle on this machine.")
        assert [line.split(":")[0].strip() for line in lines[1:]] == [
            "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu"]

    def test_another_library(self, toy, monkeypatch):
        monkeypatch.setenv("DPT_ONNXRUNTIME_LIBRARY", "libm.so.6")
        with pytest.raises(MissingPackage, match=r"libm.so.6 is not the expected library: it does not export OrtGet"):
            CppSession(toy, "onnxruntime-cpu")

    def test_cuda_with_a_cpu_build(self, toy, onnxruntime_library):
        if (onnxruntime_library.parent / "libonnxruntime_providers_cuda.so").exists():
            pytest.skip("this ONNX Runtime was built with CUDA")
        with pytest.raises(BackendError, match=r"onnxruntime-cuda: ONNX Runtime .* was built without CUDA"):
            CppSession(toy, "onnxruntime-cuda")

    def test_a_library_in_the_same_folder_is_found(self, toy, library, onnxruntime_library, tmp_path):
        """An application may ship libdpt_runtime and libonnxruntime.so.1 in one folder, without any variable."""
        (tmp_path / "libdpt_runtime.so.1").write_bytes(library.read_bytes())
        variables = {key: value for key, value in os.environ.items() if key != "DPT_ONNXRUNTIME_LIBRARY"}

        def minimal() -> subprocess.CompletedProcess[str]:
            return subprocess.run([library.parent / "examples" / "c" / "dpt_minimal", toy.folder], capture_output=True,
                                  env=variables | {"LD_LIBRARY_PATH": str(tmp_path)}, text=True, check=False)

        assert "Install ONNX Runtime" in minimal().stderr
        os.symlink(onnxruntime_library, tmp_path / "libonnxruntime.so.1")
        assert minimal().stdout.endswith("depth at the centre: 129.000 m\n")


def test_the_contract_json_equals_the_manifest(toy):
    with CppSession(toy) as session:
        text = session.library.dpt_contract_json(session.handle).decode()
    assert json.loads(text) == toy.contract.to_json()
