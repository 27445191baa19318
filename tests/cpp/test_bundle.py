"""Invalid bundles: the C++ runtime rejects what the Python runtime rejects, with the same class of error."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import numpy as np
import onnx
import pytest

from dpt_deploy.backends.cpp import CppSession
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BackendError, BadBundle, ContractError, DptError, MissingPackage
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


def test_a_changed_file_of_an_imported_model(toy):
    edit_manifest(toy.folder, lambda content: content.update(options={"description": {}}))
    (toy.folder / FILE).write_bytes(b"changed")
    bundle = Bundle.open(toy.folder)
    assert_rejected(bundle, BadBundle, r"Import again: python -m dpt_deploy\.export\.importing toy\.pth --out ")


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
    lambda content: content["artifacts"][0].update(sha256="0" * 63),
    lambda content: content["artifacts"][0].update(sha256="G" * 64),
    lambda content: content["artifacts"][0].update(kind="picture"),
    lambda content: content["contract"].update(input_size=["384", 384]),
    lambda content: content["contract"].update(input_size=[384.5, 384]),
    lambda content: content["contract"].update(mean=[1e999, 0, 0]),
    lambda content: content.update(training=json.loads("[" * 64 + "]" * 64)),
    lambda content: content["contract"].pop("mean"),
    lambda content: content["contract"].update(heads=["alpha", "depth"]),
    lambda content: content["contract"].update(heads=[]),
    lambda content: content["contract"].update(resize="crop"),
    lambda content: content["contract"].update(depth="in feet"),
])
def test_a_malformed_manifest(toy, change):
    edit_manifest(toy.folder, change)
    assert_rejected(toy, BadBundle, "not a valid manifest of format 1 .*Export the checkpoint again")


def test_a_manifest_without_artifacts(toy):
    edit_manifest(toy.folder, lambda content: content.pop("artifacts"))
    assert_rejected(toy, BadBundle, "not a valid manifest of format 1")


def test_unknown_fields_are_ignored(toy):
    """A later version may add fields without changing the format."""
    edit_manifest(toy.folder, lambda content: content["artifacts"][0].update(added_later=1))
    CppSession(toy, "onnxruntime-cpu").close()


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "..", "a/b.onnx", ""])
def test_a_name_that_leads_out_of_the_folder(toy, name):
    edit_manifest(toy.folder, lambda content: content["artifacts"][0].update(file=name))
    assert_rejected(toy, BadBundle, "expected the name of a file in the bundle's folder, received", python=False)


@pytest.mark.parametrize("text", [
    "", "{", "[]", "null", "\x00", '{"format": 1, "format"', "[" * 100_000, "[" * 200_000 + "]" * 200_000,
    '{"a":' * 200_000 + "1" + "}" * 200_000,
])
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


def test_a_graph_with_another_kind_of_depth(tmp_path):
    bundle = make_toy(tmp_path / "toy", Contract(depth="relative"))
    CppSession(bundle, "onnxruntime-cpu").close()
    onnx.save(toy_graph(Contract()), bundle.folder / FILE)
    bundle.add(FILE, "onnx", graph="frame", precision="fp32")
    assert_rejected(bundle, ContractError, "the contract embedded in the graph differs from the one in manifest.json")


@pytest.mark.parametrize(("contract", "message"), [
    (None, "the graph embeds no contract"), ("", "is not valid"), ("null", "is not valid"), ("{", "is not valid"),
    ("[" * 200_000 + "]" * 200_000, "nested more than 64 levels deep"),
])
def test_a_graph_without_a_valid_contract(tmp_path, contract, message):
    bundle = make_toy(tmp_path / "toy")
    graph = toy_graph(Contract())
    onnx.helper.set_model_props(graph, {} if contract is None else {"contract": contract})
    onnx.save(graph, bundle.folder / FILE)
    bundle.add(FILE, "onnx", graph="frame", precision="fp32")
    assert_rejected(bundle, ContractError, message)


def external_toy(folder, location):
    """A toy bundle whose graph names `location` as the file of its weights."""
    bundle = make_toy(folder)
    graph = toy_graph(Contract())
    for tensor in graph.graph.initializer:
        if tensor.name == "top":
            values = np.float32(255).tobytes()
            tensor.ClearField("float_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=location)
    (folder / "weights.bin").write_bytes(values)
    (folder / FILE).write_bytes(graph.SerializeToString())
    bundle.add(FILE, "onnx", graph="frame", precision="fp32")
    return bundle


def test_external_data_of_any_name_is_checked(tmp_path):
    bundle = external_toy(tmp_path / "toy", "weights.bin")
    CppSession(bundle, "onnxruntime-cpu").close()
    load(bundle.folder, backend="onnxruntime-cpu").close()
    (bundle.folder / "weights.bin").write_bytes(np.float32(25.5).tobytes())
    assert_rejected(bundle, BadBundle, r"weights\.bin does not match manifest.json")


@pytest.mark.parametrize("location", ["weights.bin", "../toy/weights.bin", "/etc/passwd", "*/_ORT_MEM_ADDR_/*"])
def test_external_data_that_is_not_listed(tmp_path, location):
    bundle = external_toy(tmp_path / "toy", location)
    edit_manifest(bundle.folder, lambda content: content.update(
        artifacts=[entry for entry in content["artifacts"] if entry["kind"] == "onnx"]))
    assert_rejected(bundle, BadBundle, "reads weights from '.*', which manifest.json does not list")


def test_a_link_out_of_the_folder(tmp_path):
    bundle = external_toy(tmp_path / "toy", "weights.bin")
    (bundle.folder / "weights.bin").rename(tmp_path / "weights.bin")
    (bundle.folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    assert_rejected(bundle, BadBundle, "weights.bin is a symbolic link to a file outside the bundle")
    (tmp_path / "weights.bin").rename(bundle.folder / "inside")
    (bundle.folder / "weights.bin").unlink()
    (bundle.folder / "weights.bin").symlink_to("inside")
    (tmp_path / "link").symlink_to("toy")
    CppSession(Bundle.open(tmp_path / "link"), "onnxruntime-cpu").close()


def test_both_runtimes_say_the_same(tmp_path):
    """The same words for the same fault, but for the backend's name."""
    def changed(bundle):
        (bundle.folder / "weights.bin").write_bytes(b"four")

    def another_contract(bundle):
        edit_manifest(bundle.folder, lambda content: content["contract"].update(mean=[0, 0, 0]))

    def file_of_a_bundle(bundle):
        bundle.folder /= FILE

    faults = (changed, another_contract, file_of_a_bundle, lambda bundle: (bundle.folder / FILE).unlink(),
              lambda bundle: (bundle.folder / "manifest.json").unlink(), lambda bundle: shutil.rmtree(bundle.folder))
    for i, fault in enumerate(faults):
        bundle = external_toy(tmp_path / str(i), "weights.bin")
        fault(bundle)
        with pytest.raises(DptError) as python:
            load(bundle.folder, backend="onnxruntime-cpu")
        with pytest.raises(type(python.value), match=f"^{re.escape(str(python.value))}$"):
            CppSession(bundle, "onnxruntime-cpu")


def test_a_bundle_that_was_never_judged_says_so(tmp_path):
    toy = make_toy(tmp_path / "toy", judged=False)
    with load(toy.folder, backend="onnxruntime-cpu") as python, CppSession(toy, "onnxruntime-cpu") as session:
        assert session.reason == python.reason
        assert "Not judged: the bundle has no parity verdict, because its export was interrupted" in python.reason
    judged = make_toy(tmp_path / "judged")
    with load(judged.folder, backend="onnxruntime-cpu") as python, CppSession(judged, "onnxruntime-cpu") as session:
        assert session.reason == python.reason == f"onnxruntime-cpu runs {FILE}, as requested."


def test_a_graph_with_other_outputs(tmp_path):
    bundle = make_toy(tmp_path / "toy", outputs=("alpha", "depth", "normals"))
    message = "expected inputs and outputs frame, depth, normals, alpha, found frame, alpha"
    assert_rejected(bundle, ContractError, message)


def test_a_file_that_is_not_an_onnx_graph(toy):
    (toy.folder / FILE).write_bytes(b"no graph at all")
    toy.add(FILE, "onnx", graph="frame", precision="fp32")
    assert_rejected(toy, BadBundle, f"{FILE} is not a valid ONNX file: it is not a protobuf message")


def test_a_precision_that_the_bundle_lacks(toy):
    with pytest.raises(BackendError, match=f"no ONNX file of the frame graph in bf16; its ONNX files are {FILE}"):
        CppSession(toy, precision="bf16", backend="onnxruntime-cpu")


def test_the_same_artefact_is_chosen_as_in_python(toy):
    others = [f"frame.{precision}.onnx" for precision in ("int8", "fp8", "fp16")]
    for file in others:
        onnx.save(toy_graph(toy.contract), toy.folder / file)
        toy.add(file, "onnx", graph="frame", precision=file.split(".")[1])
    for precision, file in ((None, FILE), *((file.split(".")[1], file) for file in others)):
        with (
            CppSession(toy, precision=precision) as session,
            load(toy.folder, backend="onnxruntime-cpu", precision=precision) as python,  # C++ has no OpenVINO
        ):
            assert session.reason.startswith(f"onnxruntime-cpu runs {file}")
            assert python.artifact.file == file


def test_eight_bits_are_never_chosen_unasked(toy):
    for precision in ("int8", "fp8"):
        onnx.save(toy_graph(toy.contract), toy.folder / f"frame.{precision}.onnx")
        toy.add(f"frame.{precision}.onnx", "onnx", graph="frame", precision=precision)
    toy.remove(toy.find("onnx", file=FILE)[0])
    with pytest.raises(BackendError, match=r"no backend can run this bundle(?s:.*)no ONNX file of the frame graph"):
        CppSession(toy)
    with pytest.raises(BackendError, match=r"CUDA provider has no int8 kernels.*Use an engine, or onnxruntime-cpu"):
        CppSession(toy, "onnxruntime-cuda", precision="int8")
    with CppSession(toy, precision="int8") as session:
        assert session.reason.startswith("onnxruntime-cpu runs frame.int8.onnx")


class TestOnnxRuntime:
    def test_a_missing_library(self, toy, monkeypatch):
        monkeypatch.setenv("DPT_ONNXRUNTIME_LIBRARY", "/no/such/libonnxruntime.so")
        with pytest.raises(MissingPackage, match=r"/no/such/libonnxruntime.so: cannot open.*Install ONNX Runtime 1.23"):
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
