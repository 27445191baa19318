"""ONNX graphs in ONNX Runtime with the CPU or CUDA provider."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from ..core.bundle import Bundle
from ..core.contract import Graph
from ..core.errors import BackendError, Cause, ContractError, MissingPackage, first_line, missing_package
from ..core.install import install_command
from ..core.manifest import EIGHT_BITS, Artifact, Precision
from ..core.verdict import StageKind
from . import cuda, device
from .base import Backend, Check, Refusal, SessionOptions, StageTask
from .eight_bits import session_note, stage_notes
from .session import Session, host_array, reject_stream

Device = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CPU_NOTE = (
    "checks graph, weights and names, but not FP16 arithmetic: ONNX Runtime's CPU provider computes most operators "
    "in FP32"
)
DIAGNOSED = ("TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider", "CUDAExecutionProvider",
             "OpenVINOExecutionProvider", "CPUExecutionProvider")


class OnnxRuntime(Backend):
    """ONNX Runtime with the CPU or CUDA provider."""

    title = "ONNX Runtime"
    package = "onnxruntime"

    def __init__(self, provider: Device) -> None:
        self.provider = provider
        self.name = f"onnxruntime-{provider}"
        self.device = "gpu" if provider == "cuda" else "cpu"
        self.extra = "gpu" if provider == "cuda" else "cpu"
        self.runs = f"ONNX graphs on {'an NVIDIA GPU' if provider == 'cuda' else 'any CPU, in FP32'}"

    def unavailable(self) -> Refusal | None:
        try:
            _onnxruntime(self.provider)
        except (MissingPackage, BackendError) as error:
            return Refusal(error.cause, error.message)
        if self.provider == "cuda" and device.compute_capability() is None:
            return Refusal(Cause.NO_GPU, device.NO_GPU)
        return None

    def candidates(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> list[Artifact]:
        # The CPU provider computes in FP32 for any graph. A GPU is faster in half precision.
        preferred = ("fp32", "fp16", "bf16") if self.provider == "cpu" else ("fp16", "bf16", "fp32")
        order = (precision,) if precision else preferred
        if self.provider == "cuda" and precision in EIGHT_BITS:
            return []
        found = [artifact for artifact in bundle.find("onnx", graph=graph) if artifact.precision in order]
        return sorted(found, key=lambda artifact: order.index(artifact.precision))

    def no_candidate(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> Refusal:
        if self.provider == "cuda" and precision in EIGHT_BITS:
            return Refusal(Cause.UNSUPPORTED, f"ONNX Runtime's CUDA provider has no {precision.upper()} kernels for "
                           "these graphs; it would compute in FP32", "use an engine, or a backend on the CPU")
        return super().no_candidate(bundle, graph, precision)

    def open(self, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        return OnnxRuntimeSession(bundle, artifact, self.provider, options.threads)

    def stages(self, bundle: Bundle) -> list[StageTask]:
        """One stage per graph: FP32 on the CPU, half precision on the GPU if there is one."""
        gpu = device.compute_capability() is not None and OnnxRuntime("cuda").unavailable() is None
        found = []
        for artifact in bundle.find("onnx"):
            on_gpu = gpu and artifact.precision in ("fp16", "bf16")  # eight bits are for processors and engines
            if on_gpu != (self.provider == "cuda"):
                continue
            # Adversarial inputs provoke FP16 overflow, which the CPU provider does not reproduce.
            emulated = artifact.precision == "fp16" and self.provider == "cpu"
            found.append(StageTask(
                self.stage_id(artifact, StageKind.GRAPH), artifact, lambda a=artifact: self._open_stage(bundle, a),
                (CPU_NOTE,) if emulated else stage_notes(artifact), images_only=emulated,
                must_open=artifact.precision != "bf16",
            ))
        return found

    def _open_stage(self, bundle: Bundle, artifact: Artifact) -> Session:
        if artifact.precision == "bf16" and self.provider == "cpu":
            raise BackendError("ONNX Runtime's CPU provider has no BF16 convolution")
        return self.open(bundle, artifact, SessionOptions())

    def diagnose(self) -> list[Check]:
        """The package, and each listed provider by running a graph. Reported once for both backends."""
        if self.provider == "cuda":
            return []
        try:
            import onnxruntime as ort
        except ImportError:
            return [Check(self.title, "not installed", "runs ONNX graphs", install_command("cpu"))]
        providers = [name for name in ort.get_available_providers() if name in DIAGNOSED]
        preload(ort)
        return [Check(self.title, "ok", f"{ort.__version__}, lists {', '.join(providers)}"),
                *(_check_provider(ort, name) for name in providers)]


class OnnxRuntimeSession(Session):
    """An ONNX graph of a bundle. Thread-safe.

    Host inputs give NumPy outputs. With the CUDA provider, an input on the GPU (`__dlpack__` or
    `__cuda_array_interface__`) is not copied, and every output is a `cuda.DeviceArray` that is complete on
    return. ONNX Runtime computes on its own stream, so the host first synchronises the caller's.
    """

    def __init__(
        self, bundle: Bundle, artifact: Artifact, provider: Device = "cpu", threads: int | None = None
    ) -> None:
        """Load a graph.

        Args:
            bundle: The bundle with the graph.
            artifact: The graph.
            provider: "cpu" or "cuda", on the current GPU.
            threads: CPU threads per operator. None uses ONNX Runtime's default.

        Raises:
            MissingPackage: ONNX Runtime or cuda-python is not installed.
            BackendError: The provider is not active, or the graph cannot be loaded.
            BadBundle, ContractError: The file does not match the manifest.
        """
        super().__init__(bundle.contract, artifact.graph)
        self.backend = f"onnxruntime-{provider}"
        self.device = provider
        ort = _onnxruntime(provider)
        path = bundle.path(artifact)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors are raised below
        if threads is not None:
            options.intra_op_num_threads = threads
        if artifact.precision == "fp8":
            # 1.31.1 replaces FP8 layers by INT8 kernels, or gives wrong maps if only that is turned off.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        elif artifact.precision == "int8":
            # FP32 products where only the weights are quantized. By default their activations would be, too.
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        # It has INT8 kernels only for convolutions whose output is quantized at once (docs/speed.md, "Tried").
        self.note = session_note(artifact, "most convolutions")
        self._gpu = cuda.current_device() if provider == "cuda" else 0
        providers = [cuda_provider(self._gpu)] if provider == "cuda" else []
        providers.append(PROVIDERS["cpu"])
        try:
            session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions have no other common base class
            if newest := re.search(r"domain ai\.onnx is till opset (\d+)", str(error)):
                package = "onnxruntime-gpu" if provider == "cuda" else "onnxruntime"
                upgrade = install_command("gpu" if provider == "cuda" else "cpu", package, flags=("--upgrade",))
                raise BackendError(
                    f"{self.backend} cannot load {path}: ONNX Runtime {ort.__version__} supports graphs up to opset "
                    f"{newest[1]}, and this one is newer. Upgrade it: {upgrade}; or export again with --opset 20."
                ) from error
            raise BackendError(f"{self.backend} cannot load {path}: {first_line(error)}. Choose another precision or "
                               "backend.") from error
        if PROVIDERS[provider] not in session.get_providers():
            raise BackendError(
                f"expected {PROVIDERS[provider]} to be active, but ONNX Runtime {ort.__version__} fell back to "
                f"{session.get_providers()[0]}. Check that nvidia-smi lists a GPU, and that the CUDA and cuDNN "
                f"libraries match this version: {install_command('gpu')}", backend=self.backend)
        names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
        if names != [*self.inputs, *self.outputs]:
            raise ContractError(f"{path}: expected inputs and outputs {[*self.inputs, *self.outputs]}, received "
                                f"{names}. Make the bundle again: {bundle.remake_command}")
        self._session = session
        batch = session.get_inputs()[0].shape[0]
        # Our own graphs take every batch, so one that does not is a fault that its batch has to show.
        self._batch = batch if bundle.manifest.imported and isinstance(batch, int) else None

    def largest_batch(self, size: tuple[int, int]) -> int | None:
        return self._batch

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, Any]:
        session = self._session
        if self.device == "cpu":
            reject_stream(stream, self.backend)
        elif pointers := self._on_gpu(inputs, stream):
            return self._run_bound(pointers, inputs, outputs)
        feeds = {name: host_array(value, name) for name, value in inputs.items()}
        with self._wrapped_errors(inputs):
            return dict(zip(outputs, session.run(outputs, feeds), strict=True))

    def _on_gpu(self, inputs: Mapping[str, Any], stream: int | None) -> dict[str, cuda.DeviceView]:
        """The inputs' GPU memory, ready to be read on any stream. Empty if the inputs are in host memory."""
        if all(isinstance(value, np.ndarray) for value in inputs.values()):
            return {}
        producer = cuda.LEGACY_STREAM if stream is None else stream
        (name, value), = inputs.items()  # every graph has one input
        view = cuda.device_view(value, name, producer, stream is not None, self._gpu)
        if view is None:
            return {}
        cuda.call("cudaStreamSynchronize", producer)
        return {name: view}

    def _run_bound(
        self, views: Mapping[str, cuda.DeviceView], inputs: Mapping[str, Any], outputs: list[str]
    ) -> dict[str, cuda.DeviceArray]:
        binding = self._session.io_binding()
        with self._wrapped_errors(inputs):
            for name, view in views.items():
                shape, dtype = tuple(inputs[name].shape), np.dtype(self.inputs[name].dtype)
                binding.bind_input(name, self.device, self._gpu, dtype, shape, view.pointer)
            for name in outputs:
                binding.bind_output(name, self.device, self._gpu)
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        return {
            name: cuda.DeviceArray(value.data_ptr(), tuple(value.shape()), self.outputs[name].dtype, value, None)
            for name, value in zip(outputs, binding.get_outputs(), strict=True)
        }

    @contextlib.contextmanager
    def _wrapped_errors(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Convert exceptions of ONNX Runtime to a `BackendError` that gives the input shapes."""
        try:
            yield
        except Exception as error:  # ONNX Runtime's exceptions have no other common base class
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise BackendError(f"{self.backend} could not run {shapes}: {first_line(error)}.") from error

    def close(self) -> None:
        super().close()
        self._session = None


def cuda_provider(gpu: int) -> tuple[str, dict[str, str]]:
    """The CUDA provider and its options. Disables TF32, which it would use for FP32 graphs by default."""
    return PROVIDERS["cuda"], {"device_id": str(gpu), "use_tf32": "0"}


def _onnxruntime(provider: Device) -> Any:
    """Import onnxruntime and check that it includes the provider."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", "gpu" if provider == "cuda" else "cpu", "run ONNX graphs") from error
    if PROVIDERS[provider] not in onnxruntime.get_available_providers():
        raise BackendError(
            f"the installed ONNX Runtime {onnxruntime.__version__} was built without CUDA. Run: python -m pip "
            f"uninstall onnxruntime; {install_command('gpu')}", backend="onnxruntime-cuda")
    if provider == "cuda":
        preload(onnxruntime)
    return onnxruntime


def preload(onnxruntime: Any) -> None:
    """Load the CUDA libraries installed by pip, without ONNX Runtime's messages about missing ones."""
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()


def _check_provider(ort: Any, provider: str) -> Check:
    """Run a graph on a provider, because ONNX Runtime falls back to the CPU silently."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    chain = [provider] if provider == "CPUExecutionProvider" else [provider, "CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(doubling_graph(), options, providers=chain)
        active = session.get_providers()[0]
        (answer,) = session.run(None, {"x": np.array([1, 2], np.float32)})
    except Exception as error:  # ONNX Runtime's exceptions have no other common base class
        return Check(provider, "failed", f"listed, but fails: {first_line(error)}")
    if active == provider and answer.tolist() == [2.0, 4.0]:
        return Check(provider, "ok", "runs a graph")
    if device.compute_capability() is None:
        return Check(provider, "warning", f"listed, but falls back to {active}: {device.NO_GPU}")
    return Check(provider, "warning", f"listed, but falls back to {active}: its libraries are not found",
                 install_command("gpu"))


def doubling_graph() -> bytes:
    """An ONNX graph y = x + x, float32 (2,). Serialised by hand because onnx is optional."""
    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    def value(name: bytes) -> bytes:  # ValueInfoProto: name, tensor type float, shape (2,)
        shape = field(1, b"\x08\x02")
        return field(1, name) + field(2, field(1, b"\x08\x01" + field(2, shape)))

    node = field(1, b"x") + field(1, b"x") + field(2, b"y") + field(3, b"n") + field(4, b"Add")
    graph = field(1, node) + field(2, b"g") + field(11, value(b"x")) + field(12, value(b"y"))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x0d")  # IR version 8, opset 13
