"""ONNX Runtime sessions: what they take and give, and what they refuse."""

from __future__ import annotations

import ctypes
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from dpt_deploy.backends import device
from dpt_deploy.backends.cuda import DeviceView
from dpt_deploy.backends.onnxruntime import OnnxRuntimeSession
from dpt_deploy.core.bundle import Artifact, Bundle
from dpt_deploy.core.errors import BackendError, BadBundle, ContractError, MissingPackage
from dpt_deploy.runtime import load
from tests.tiny import open_session, photo


def artifact(bundle: Bundle, graph: str = "frame") -> Artifact:
    return bundle.find("onnx", graph=graph, precision="fp32")[0]


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> OnnxRuntimeSession:
    bundle = Bundle.open(tiny_bundle)
    with open_session(bundle, artifact(bundle), "onnxruntime-cpu", threads=1) as opened:
        yield opened


def test_chosen_outputs_alone_come_back_in_order(session: OnnxRuntimeSession) -> None:
    frames = {"frame": photo(64, 70)[None]}
    everything = session.run(frames)
    assert list(everything) == ["depth", "normals", "alpha"]
    some = session.run(frames, ["alpha", "depth"])
    assert list(some) == ["alpha", "depth"]
    for name, value in some.items():
        np.testing.assert_array_equal(value, everything[name])


def test_dlpack_arrays_are_taken(session: OnnxRuntimeSession) -> None:
    frames = photo(64, 70)[None]
    want = session.run({"frame": frames})
    np.testing.assert_array_equal(session.run({"frame": torch.from_numpy(frames)})["depth"], want["depth"])
    assert torch.from_dlpack(want["depth"]).shape == (1, 64, 70)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"image": np.zeros((1, 4, 4, 3), np.uint8)}, "expected frame, received image"),
        ({"frame": np.zeros((1, 4, 4, 3), np.float32)}, "expected uint8"),
        ({"frame": np.zeros((4, 4, 3), np.uint8)}, "expected uint8"),
        ({"frame": np.zeros((0, 4, 4, 3), np.uint8)}, "expected uint8"),
        ({"frame": [[1]]}, "received a list"),
        ({}, "received none"),
    ],
)
def test_inputs_outside_the_contract_are_refused(session: OnnxRuntimeSession, inputs: dict, words: str) -> None:
    with pytest.raises(ContractError, match=words):
        session.run(inputs)


def test_outputs_and_streams_that_are_not_there_are_refused(session: OnnxRuntimeSession) -> None:
    frames = {"frame": photo(64, 70)[None]}
    for outputs in (["depth", "albedo"], []):
        with pytest.raises(ContractError, match="names among depth, normals, alpha"):
            session.run(frames, outputs)
    with pytest.raises(ContractError, match="does not take a CUDA stream"):
        session.run(frames, stream=1)


def test_bound_memory_gives_the_same_maps(session: OnnxRuntimeSession) -> None:
    """The way of device arrays, walked with host memory: on the CPU provider, both are the same."""
    frames = photo(64, 70)[None]
    bound = session._run_bound({"frame": DeviceView(frames.ctypes.data, frames)}, {"frame": frames}, ["alpha", "depth"])
    for name, want in session.run({"frame": frames}, ["alpha", "depth"]).items():
        array = bound[name]
        assert (array.shape, array.dtype, array.stream) == (want.shape, want.dtype, None)
        have = np.ctypeslib.as_array(ctypes.cast(array.pointer, ctypes.POINTER(ctypes.c_float)), array.shape)
        np.testing.assert_array_equal(have, want)


def test_a_file_that_is_no_graph_is_refused(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    (own_bundle / "frame.fp32.onnx").write_bytes(b"not a graph")
    changed = bundle.add("frame.fp32.onnx", "onnx", graph="frame", precision="fp32")
    with pytest.raises(BadBundle, match=r"frame\.fp32\.onnx is not a valid ONNX file"):
        open_session(bundle, changed, "onnxruntime-cpu")


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
def test_a_graph_without_the_contract_of_the_bundle_is_refused(own_bundle: Path, backend: str) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip(backend.partition("-")[0])
    for contract, message in ((None, "embeds no contract"), ("null", "not valid"), ("", "not valid")):
        graph = onnx.load(own_bundle / "frame.fp32.onnx")
        onnx.helper.set_model_props(graph, {} if contract is None else {"contract": contract})
        onnx.save(graph, own_bundle / "frame.fp32.onnx")
        bundle = Bundle.open(own_bundle)
        bundle.add("frame.fp32.onnx", "onnx", graph="frame", precision="fp32")
        with pytest.raises(ContractError, match=message):
            load(own_bundle, backend)


def test_weights_that_no_hash_covers_are_refused(own_bundle: Path) -> None:
    onnx = pytest.importorskip("onnx")
    frame = photo(64, 48)
    with load(own_bundle, "onnxruntime-cpu") as loaded:
        want = loaded(frame).depth
    graph = onnx.load(own_bundle / "frame.fp32.onnx")
    onnx.save(graph, own_bundle / "frame.fp32.onnx", save_as_external_data=True, location="weights.bin")
    bundle = Bundle.open(own_bundle)
    bundle.add("frame.fp32.onnx", "onnx", graph="frame", precision="fp32")
    with load(own_bundle, "onnxruntime-cpu") as loaded:
        np.testing.assert_array_equal(loaded(frame).depth, want)
    bundle.update(artifacts=tuple(one for one in bundle.artifacts if one.kind != "data"))
    bundle.save()
    with pytest.raises(BadBundle, match=r"weights from 'weights\.bin', which manifest\.json does not list"):
        load(own_bundle, "onnxruntime-cpu")


def test_a_graph_of_another_kind_is_refused(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    (own_bundle / "frame.fp32.onnx").write_bytes((own_bundle / "model.fp32.onnx").read_bytes())
    changed = bundle.add("frame.fp32.onnx", "onnx", graph="frame", precision="fp32")
    with pytest.raises(ContractError, match="expected inputs and outputs"):
        open_session(bundle, changed, "onnxruntime-cpu")


def test_cuda_without_a_gpu_is_refused(tiny_bundle: Path) -> None:
    if device.compute_capability() is not None:
        pytest.skip("a GPU is visible here")
    with pytest.raises(BackendError, match=r"onnxruntime-cuda.*pip install .*onnxruntime-gpu"):
        load(tiny_bundle, "onnxruntime-cuda")


def test_a_silent_fall_back_to_the_cpu_is_noticed(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu on a machine without CUDA lists the provider, and then runs on the CPU."""
    if device.compute_capability() is not None:
        pytest.skip("a GPU is visible here")
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the CPU build says aloud what the GPU build does silently
        with pytest.raises(BackendError, match=r"expected CUDAExecutionProvider to be active.*CPUExecutionProvider"):
            load(tiny_bundle, "onnxruntime-cuda")


def test_without_onnx_runtime_both_commands_are_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    bundle = Bundle.open(tiny_bundle)
    words = r"pip install .*onnxruntime"
    with pytest.raises(MissingPackage, match=words):
        open_session(bundle, artifact(bundle), "onnxruntime-cpu")
    with pytest.raises(BackendError, match=words):
        load(tiny_bundle, "onnxruntime-cpu")
    if device.compute_capability() is None:
        with pytest.raises(BackendError, match=rf"(?s)no backend can run here.*{words}"):
            load(tiny_bundle)
