"""Engines: which ones fit, which shapes they take, and what is said when one cannot run.

What needs a GPU is marked so, and runs on one alone.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.contenders import contenders
from dpt_deploy.backends import SessionOptions, cuda, device, dlpack
from dpt_deploy.backends.engines import EngineProfile, incompatibility
from dpt_deploy.backends.session import Session
from dpt_deploy.backends.tensorrt import TensorRT
from dpt_deploy.backends.tensorrt_session import TensorRTSession
from dpt_deploy.build import EngineOptions, build_engines
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BackendError, BadBundle, ContractError, MissingPackage
from dpt_deploy.core.manifest import Artifact, ShapeRange
from dpt_deploy.runtime import load
from tests.tiny import open_session, photo


def engine(bundle: Bundle, graph: str = "frame", **details: object) -> Artifact:
    """The bundle's TensorRT-RTX engine, described with other `details`."""
    found = bundle.find("engine", graph=graph, builder="tensorrt-rtx")[0]
    return found.model_copy(update={"details": found.details.model_copy(update=details)})


def without_gpu() -> None:
    if device.compute_capability() is not None:
        pytest.skip("a GPU is visible here")


def test_a_real_engine_without_a_gpu_is_refused_in_the_builders_words(tiny_bundle: Path) -> None:
    without_gpu()
    with pytest.raises(BackendError) as caught:
        load(tiny_bundle, "tensorrt-rtx")
    message = str(caught.value)
    assert message.startswith("tensorrt-rtx: frame.fp16.rtx")
    assert "Cuda Runtime" in message, "the builder's own words"
    assert "No GPU is visible" in message and f"python -m dpt_deploy.build {tiny_bundle}" in message
    assert "\n" not in message


def test_every_call_hears_the_builder_anew(tiny_bundle: Path) -> None:
    without_gpu()
    said = []
    for _ in range(2):
        with pytest.raises(BackendError) as caught:
            load(tiny_bundle, "tensorrt-rtx")
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_plan_that_is_none_is_refused(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    described = engine(bundle)
    (own_bundle / described.file).write_bytes(b"not a plan" * 100)
    changed = bundle.add(described.file, "engine", graph="frame", precision="fp16", details=described.details)
    with pytest.raises(BackendError, match=r"cannot be loaded here: .*python -m dpt_deploy\.build"):
        open_session(bundle, changed, "tensorrt-rtx")


def test_a_changed_engine_is_refused(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    path = own_bundle / engine(bundle).file
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadBundle, match=r"does not match manifest\.json.*python -m dpt_deploy\.build"):
        load(own_bundle, "tensorrt-rtx")


def test_an_engine_of_another_version_is_refused(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    old = engine(bundle, builder_version="1.6.0.1")
    words = r"built by tensorrt-rtx 1\.6\.0\.1, and 1\..* is installed.*dpt_deploy\.build"
    with pytest.raises(BackendError, match=words):
        open_session(bundle, old, "tensorrt-rtx")


def test_what_does_not_fit_is_named(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    version = engine(bundle).details.builder_version
    assert incompatibility(bundle, engine(bundle), version, "12.0") is None
    for_ada = engine(bundle, compute_capability="8.9")
    assert incompatibility(bundle, for_ada, version, "8.9") is None
    assert incompatibility(bundle, for_ada, version, "9.0") == (
        "was built for a GPU of compute capability 8.9, and this one has 9.0"
    )
    stale = engine(bundle, made_from="0" * 64)
    assert "another graph than frame.fp16.onnx" in incompatibility(bundle, stale, version, None)


def test_an_engine_outlives_the_graph_it_was_made_from(own_bundle: Path) -> None:
    """Deployed bundles carry the engine alone."""
    bundle = Bundle.open(own_bundle)
    for graph in bundle.find("onnx"):
        bundle.remove(graph)
    assert incompatibility(bundle, engine(bundle), engine(bundle).details.builder_version, None) is None


def test_without_the_package_the_command_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle.open(tiny_bundle)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingPackage, match=r"tensorrt_rtx.*-m pip install .*tensorrt_rtx"):
        open_session(bundle, engine(bundle), "tensorrt-rtx")


SHAPES = ShapeRange(min=(1, 64, 64, 3), opt=(1, 720, 1280, 3), max=(8, 2160, 3840, 3))
PROFILE = EngineProfile("frame.engine", {"frame": SHAPES}, 2160 * 3840)


@pytest.mark.parametrize("shape", [(1, 64, 64, 3), (1, 2160, 3840, 3), (8, 1000, 1000, 3), (4, 1080, 1920, 3)])
def test_shapes_within_the_profile_pass(shape: tuple[int, ...]) -> None:
    PROFILE.check({"frame": shape}, "")


@pytest.mark.parametrize(
    "shape", [(1, 63, 64, 3), (9, 64, 64, 3), (1, 2161, 3840, 3), (1, 64, 3841, 3), (2, 2160, 3840, 3)]
)
def test_shapes_outside_the_profile_name_both(shape: tuple[int, ...]) -> None:
    with pytest.raises(ContractError) as caught:
        PROFILE.check({"frame": shape}, "Build another.")
    message = str(caught.value)
    for part in ("from [1, 64, 64, 3] to [8, 2160, 3840, 3]", "8294400 pixels", str(list(shape)), "Build another."):
        assert part in message


def test_a_long_list_is_split_as_the_profile_allows(tiny_bundle: Path) -> None:
    assert PROFILE.largest_batch((64, 64)) == 8
    assert PROFILE.largest_batch((1080, 1920)) == 4
    assert PROFILE.largest_batch((4000, 4000)) == 1  # and check() says that it does not fit
    bundle = Bundle.open(tiny_bundle)
    assert EngineProfile.of(engine(bundle, "model")).largest_batch((4000, 4000)) == 8
    assert EngineProfile.of(engine(bundle)).max_pixels is not None


def test_memory_of_a_dlpack_capsule_is_found() -> None:
    """The layout of DLPack's struct is the same for host and device memory."""
    base = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(2, 3, 4)
    for tensor in (base, base[1:], base.transpose(0, 1), base[:, ::2]):
        pointer, shape, strides = dlpack.memory(tensor.__dlpack__())
        assert (pointer, shape) == (tensor.data_ptr(), tuple(tensor.shape))
        assert strides is None or strides == tensor.stride()


class Foreign:
    """An array that speaks __cuda_array_interface__ alone; the pointer is never followed here."""

    def __init__(self, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
        self.__cuda_array_interface__ = {
            "version": 3, "shape": shape, "typestr": "<f4", "data": (4096, False), "strides": strides, "stream": None,
        }


def test_device_arrays_must_be_contiguous() -> None:
    for strides in (None, (48, 16, 4)):
        assert cuda.device_view(Foreign((2, 3, 4), strides), "frame", 0, True).pointer == 4096
    assert cuda.device_view(Foreign((1, 3, 4), (999, 16, 4)), "frame", 0, True).pointer == 4096
    with pytest.raises(ContractError, match=r"frame: expected a C-contiguous.*\[24, 4, 1\]"):
        cuda.device_view(Foreign((2, 3, 4), (96, 16, 4)), "frame", 0, True)


def test_host_arrays_are_no_device_arrays() -> None:
    assert cuda.device_view(np.zeros(3), "frame", 0, False) is None
    assert cuda.device_view(torch.zeros(3), "frame", 0, False) is None


def test_a_device_array_describes_itself() -> None:
    array = cuda.DeviceArray(4096, (2, 3), "float32", None, 0)
    assert array.nbytes == 24
    interface = array.__cuda_array_interface__
    assert interface["data"] == (4096, False) and interface["shape"] == (2, 3) and interface["typestr"] == "<f4"
    assert interface["stream"] == 1, "0 is not allowed there: it could mean either default stream"
    assert cuda.DeviceArray(4096, (2, 3), "float32", None, None).__cuda_array_interface__["stream"] is None


def test_cuda_speaks_for_itself() -> None:
    without_gpu()
    with pytest.raises(BackendError, match=r"CUDA: cudaMalloc failed \(\d+\): [\w ]+\."):
        cuda.DeviceBuffer().reserve(16)


def session_of(bundle: Bundle, builder: str) -> Session:
    """The builder's engine of the frame graph, built where the bundle has none; skips where it cannot run."""
    try:
        if not bundle.find("engine", graph="frame", builder=builder):
            build_engines(bundle, EngineOptions(builder=builder), say=lambda line: None)
        return open_session(bundle, bundle.find("engine", graph="frame", builder=builder)[0], builder)
    except (BackendError, MissingPackage) as error:
        pytest.skip(f"{builder} does not run here: {error}")


@pytest.mark.gpu
@pytest.mark.parametrize("builder", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_agrees_with_the_cpu_on_host_and_device_arrays(own_bundle: Path, builder: str) -> None:
    frames = np.stack([photo(480, 640, seed) for seed in (1, 2)])
    batches = (frames, np.ascontiguousarray(frames[:1, :333, :517]), frames[::-1])
    with load(own_bundle, "onnxruntime-cpu") as runtime:
        wants = [runtime.session.run({"frame": batch}) for batch in batches]

    def agree(have: dict, want: dict) -> None:
        for name, value in have.items():
            np.testing.assert_allclose(value, want[name], atol=0.05, rtol=0.05, err_msg=name)

    with session_of(Bundle.open(own_bundle), builder) as session:
        for _ in range(4):  # plain, then captured, then as a graph
            agree(session.run({"frame": frames}), wants[0])
        for _ in range(3):  # shapes, contents and maps take turns; buffers grow, shrink and grow again
            for batch, want in zip(batches, wants, strict=True):
                agree(session.run({"frame": batch}), want)
                agree(session.run({"frame": batch}, ["alpha"]), want)
        have = session.run({"frame": frames})
        for stream in (torch.cuda.Stream(), torch.cuda.default_stream()):
            with torch.cuda.stream(stream):
                for _ in range(3):
                    on_gpu = session.run(
                        {"frame": torch.from_numpy(frames).cuda(non_blocking=True)}, ["alpha"], stream.cuda_stream
                    )
                    alpha = torch.from_dlpack(on_gpu["alpha"]).clone()
            stream.synchronize()
            np.testing.assert_array_equal(alpha.cpu().numpy(), have["alpha"])
            np.testing.assert_array_equal(on_gpu["alpha"].numpy(), have["alpha"])
        complete = session.run({"frame": torch.from_numpy(frames).cuda()}, ["alpha"])["alpha"]
        np.testing.assert_array_equal(complete.numpy(), have["alpha"])
        with pytest.raises(ContractError, match="takes shapes"):
            session.run({"frame": np.zeros((1, 8, 8, 3), np.uint8)})
    np.testing.assert_array_equal(complete.numpy(), have["alpha"], "device arrays outlive their session")
    with pytest.raises(BackendError, match="closed"):
        session.run({"frame": frames})


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("eagerly", [True, False])
def test_what_is_asked_of_tensorrt_rtx(eagerly: bool, accepts: bool) -> None:
    """A benchmark must not time the generic kernels that run until the specialised ones are compiled."""
    trt = pytest.importorskip("tensorrt_rtx")

    class Config:
        """Stands in for an IRuntimeConfig, which only a deserialised engine creates."""

        def __setattr__(self, name: str, value: object) -> None:
            assert isinstance(getattr(trt.IRuntimeConfig, name), property), f"IRuntimeConfig has no property {name}"
            if accepts or name != "cuda_graph_strategy":
                super().__setattr__(name, value)

        cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED

        def set_execution_context_allocation_strategy(self, strategy: object) -> None:
            assert strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED

        def create_runtime_cache(self) -> object:
            return SimpleNamespace(deserialize=lambda content: None)

        def set_runtime_cache(self, cache: object) -> None:
            assert cache is not None

    config = Config()
    session = object.__new__(TensorRTSession)
    session._engine = SimpleNamespace(create_runtime_config=lambda: config, create_execution_context=lambda one: one)
    session._compile_eagerly, session.captures_internally, session._cache = eagerly, True, None
    session._cache_file, session._all = Path("/no/such/cache"), []
    assert session._context(trt) is config
    eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    assert getattr(config, "dynamic_shapes_kernel_specialization_strategy", None) == (eager if eagerly else None)
    assert session.note.startswith("with CUDA graphs" if accepts else "without CUDA graphs: TensorRT-RTX refused")


def test_load_passes_on_how_to_compile(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[SessionOptions] = []

    def opens(self: TensorRT, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        opened.append(options)
        raise BackendError("not here")

    monkeypatch.setattr(TensorRT, "open", opens)
    for eagerly in (True, False):
        with pytest.raises(BackendError, match="not here"):
            load(tiny_bundle, "tensorrt-rtx", compile_eagerly=eagerly)
    assert [options.compile_eagerly for options in opened] == [True, False]


def test_benchmarks_compile_before_they_time(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[SessionOptions] = []
    monkeypatch.setattr(TensorRT, "unavailable", lambda self: None)

    def opens(self: TensorRT, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        opened.append(options)
        raise BackendError("not here")

    monkeypatch.setattr(TensorRT, "open", opens)
    (contender,) = [one for one in contenders(Bundle.open(tiny_bundle)) if one.name == "tensorrt-rtx frame fp16"]
    with pytest.raises(BackendError, match="not here"):
        contender.open()
    assert [options.compile_eagerly for options in opened] == [True]
    root = Path(__file__).resolve().parents[2] / "benchmarks"
    for path in root.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, ast.Call) and ast.unparse(node.func) in ("load", "SessionOptions")]
        for call in calls:
            assert "compile_eagerly=True" in ast.unparse(call), f"{path.name}: {ast.unparse(call)}"
