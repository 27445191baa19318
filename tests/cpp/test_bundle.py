"""What a bundle must be: the C++ runtime refuses what the Python runtime refuses, under the same class of error."""

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


def refused(bundle: Bundle, error: type[Exception], message: str, python: bool = True) -> None:
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
    refused(toy, BadBundle, rf"{FILE} is not the file that manifest.json describes.*Export again: python -m "
                            r"dpt_deploy.export toy.pth --out ")


def test_a_truncated_file(toy):
    path = toy.folder / FILE
    path.write_bytes(path.read_bytes()[:-1])
    refused(toy, BadBundle, "it was changed, truncated or replaced")


def test_a_missing_file(toy):
    (toy.folder / FILE).unlink()
    refused(toy, BadBundle, rf"{FILE} is missing from the bundle")


def test_external_data_is_checked_too(tmp_path):
    bundle = make_toy(tmp_path / "toy")
    (bundle.folder / f"{FILE}.data").write_bytes(b"weights")
    bundle.add(f"{FILE}.data", "data")
    CppSession(bundle, "onnxruntime-cpu").close()
    (bundle.folder / f"{FILE}.data").write_bytes(b"Weights")
    refused(bundle, BadBundle, rf"{FILE}.data is not the file")


def test_another_format(toy):
    edit_manifest(toy.folder, lambda content: content.update(format=2))
    refused(toy, BadBundle, r"expected format 1, received 2. Export the checkpoint again with this version")


@pytest.mark.parametrize("change", [
    lambda content: content.pop("artifacts"),
    lambda content: content.pop("contract"),
    lambda content: content["artifacts"][0].pop("sha256"),
    lambda content: content["artifacts"][0].update(surprise=1),
    lambda content: content["contract"].pop("mean"),
    lambda content: content["contract"].update(heads=["alpha", "depth"]),
    lambda content: content["contract"].update(heads=[]),
    lambda content: content["contract"].update(resize="crop"),
])
def test_a_malformed_manifest(toy, change):
    edit_manifest(toy.folder, change)
    refused(toy, BadBundle, "expected a manifest of format 1, but it cannot be read .*Export the checkpoint again")


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "..", "a/b.onnx", ""])
def test_a_name_that_leads_out_of_the_folder(toy, name):
    edit_manifest(toy.folder, lambda content: content["artifacts"][0].update(file=name))
    refused(toy, BadBundle, "is not the name of a file in the bundle's folder", python=False)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", '{"format": 1, "format"', "[" * 100_000])
def test_no_json(toy, text):
    (toy.folder / "manifest.json").write_text(text)
    with pytest.raises(BadBundle, match=r"cannot be read"):
        CppSession(toy)


def test_no_manifest(toy):
    (toy.folder / "manifest.json").unlink()
    refused(toy, BadBundle, "expected a bundle, but it has no manifest.json")


def test_a_graph_with_another_contract(tmp_path):
    bundle = make_toy(tmp_path / "toy")
    onnx.save(toy_graph(Contract(mean=(0.4, 0.5, 0.5))), bundle.folder / FILE)
    bundle.add(FILE, "onnx", graph="frame", precision="fp32")
    refused(bundle, ContractError, "carries another contract than manifest.json")


def test_a_graph_with_other_outputs(tmp_path):
    bundle = make_toy(tmp_path / "toy", outputs=("alpha", "depth", "normals"))
    refused(bundle, ContractError, "expected inputs and outputs frame, depth, normals, alpha, found frame, alpha")


def test_a_graph_that_is_none(toy):
    (toy.folder / FILE).write_bytes(b"no graph at all")
    toy.add(FILE, "onnx", graph="frame", precision="fp32")
    refused(toy, BackendError, "onnxruntime-cpu cannot load .*Choose another precision or backend")


def test_a_precision_that_the_bundle_lacks(toy):
    with pytest.raises(BackendError, match=f"no ONNX file of the frame graph in bf16, it has {FILE}"):
        CppSession(toy, precision="bf16", backend="onnxruntime-cpu")


def test_the_same_artefact_is_taken_as_in_python(toy):
    onnx.save(toy_graph(toy.contract), toy.folder / "frame.fp16.onnx")
    toy.add("frame.fp16.onnx", "onnx", graph="frame", precision="fp16")
    for precision, file in ((None, FILE), ("fp16", "frame.fp16.onnx")):
        with CppSession(toy, precision=precision) as session, load(toy.folder, precision=precision) as python:
            assert session.reason.startswith(f"onnxruntime-cpu runs {file}")
            assert python.artifact.file == file


class TestOnnxRuntime:
    def test_a_named_library_that_is_not_there(self, toy, monkeypatch):
        monkeypatch.setenv("DPT_ONNXRUNTIME_LIBRARY", "/no/such/libonnxruntime.so")
        with pytest.raises(MissingPackage, match=r"/no/such/libonnxruntime.so: cannot open.*Install ONNX Runtime 1.22"):
            CppSession(toy, "onnxruntime-cpu")

    def test_nothing_can_run(self, toy, monkeypatch):
        monkeypatch.setenv("DPT_ONNXRUNTIME_LIBRARY", "/no/such/libonnxruntime.so")
        with pytest.raises(BackendError) as caught:
            CppSession(toy)
        lines = str(caught.value).splitlines()
        assert lines[0].endswith("toy: no backend can run here.")
        assert [line.split(":")[0].strip() for line in lines[1:]] == [
            "tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-cpu"]

    def test_a_library_that_is_another(self, toy, monkeypatch):
        monkeypatch.setenv("DPT_ONNXRUNTIME_LIBRARY", "libm.so.6")
        with pytest.raises(MissingPackage, match=r"libm.so.6 is not the library that was expected: it has no OrtGet"):
            CppSession(toy, "onnxruntime-cpu")

    def test_cuda_without_it(self, toy, onnxruntime_library):
        if (onnxruntime_library.parent / "libonnxruntime_providers_cuda.so").exists():
            pytest.skip("this ONNX Runtime has CUDA")
        with pytest.raises(BackendError, match=r"onnxruntime-cuda: ONNX Runtime .* was built without CUDA"):
            CppSession(toy, "onnxruntime-cuda")

    def test_a_link_beside_the_library_is_found(self, toy, library, onnxruntime_library, tmp_path):
        """As an application ships it: libdpt_runtime and libonnxruntime.so.1 in one folder, no variable set."""
        (tmp_path / "libdpt_runtime.so.1").write_bytes(library.read_bytes())
        variables = {key: value for key, value in os.environ.items() if key != "DPT_ONNXRUNTIME_LIBRARY"}

        def minimal() -> subprocess.CompletedProcess[str]:
            return subprocess.run([library.parent / "examples" / "dpt_minimal", toy.folder], capture_output=True,
                                  env=variables | {"LD_LIBRARY_PATH": str(tmp_path)}, text=True, check=False)

        assert "Install ONNX Runtime" in minimal().stderr
        os.symlink(onnxruntime_library, tmp_path / "libonnxruntime.so.1")
        assert minimal().stdout.endswith("depth in the middle: 129.000 m\n")


def test_the_contract_json_is_the_manifests(toy):
    with CppSession(toy) as session:
        text = session.library.dpt_contract_json(session.handle).decode()
    assert json.loads(text) == toy.contract.to_json()
