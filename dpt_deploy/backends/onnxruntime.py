"""ONNX graphs on ONNX Runtime, on the CPU or through the CUDA provider."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from ..core.bundle import Artifact, Bundle
from ..core.errors import BackendError, ContractError, MissingPackage
from ..core.install import install_command, install_onnxruntime
from . import cuda
from .session import Session, first_line, host_array, no_stream

Device = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeSession(Session):
    """An ONNX graph of a bundle. Calls from many threads at a time are right.

    Host inputs give NumPy outputs. With the CUDA provider, an input on the GPU (`__dlpack__` or
    `__cuda_array_interface__`) is used where it is, and every output is a `cuda.DeviceArray`, complete
    on return: ONNX Runtime computes on a stream of its own, so the host waits for the caller's first.
    """

    def __init__(self, bundle: Bundle, artifact: Artifact, device: Device = "cpu", threads: int | None = None) -> None:
        """`threads`: how many threads one operator may use on the CPU; None lets ONNX Runtime decide.

        Raises `MissingPackage` without ONNX Runtime, `BackendError` when the provider is not active or
        the graph does not load, `BadBundle` and `ContractError` when the file is not the manifest's.
        """
        super().__init__(bundle.contract, artifact.graph)
        self.backend = f"onnxruntime-{device}"
        self.device = device
        ort = _onnxruntime(device)
        path = bundle.path(artifact)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised below
        if threads is not None:
            options.intra_op_num_threads = threads
        self._gpu = cuda.current_device() if device == "cuda" else 0
        providers = [cuda_provider(self._gpu)] if device == "cuda" else []
        providers.append(PROVIDERS["cpu"])
        try:
            session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions share no base class but this one
            raise BackendError(
                f"{self.backend} cannot load {path}: {first_line(error)}. Choose another precision or backend."
            ) from error
        if PROVIDERS[device] not in session.get_providers():
            raise BackendError(
                f"onnxruntime-cuda: expected {PROVIDERS[device]} to be active, but ONNX Runtime {ort.__version__} fell "
                f"back to {session.get_providers()[0]}. Check that nvidia-smi lists a GPU, and that the CUDA and "
                f"cuDNN libraries are those of this version: {install_command('gpu', 'onnxruntime-gpu')}"
            )
        embedded = session.get_modelmeta().custom_metadata_map.get("contract")
        bundle.check_contract(json.loads(embedded) if embedded else None, artifact.file)
        names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
        if names != [*self.inputs, *self.outputs]:
            raise ContractError(f"{path}: expected inputs and outputs {[*self.inputs, *self.outputs]}, found {names}. "
                                "Export the checkpoint again.")
        self._session = session

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, Any]:
        session = self._session
        if self.device == "cpu":
            no_stream(stream, self.backend)
        elif pointers := self._on_gpu(inputs, stream):
            return self._run_bound(pointers, inputs, outputs)
        feeds = {name: host_array(value, name) for name, value in inputs.items()}
        with self._blaming(inputs):
            return dict(zip(outputs, session.run(outputs, feeds), strict=True))

    def _on_gpu(self, inputs: Mapping[str, Any], stream: int | None) -> dict[str, cuda.DeviceView]:
        """The inputs' GPU memory, ready to be read on any stream; empty when they lie in host memory."""
        if all(isinstance(value, np.ndarray) for value in inputs.values()):
            return {}
        lane = cuda.LEGACY_STREAM if stream is None else stream
        (name, value), = inputs.items()  # every graph has one input
        view = cuda.device_view(value, name, lane, stream is not None, self._gpu)
        if view is None:
            return {}
        cuda.call("cudaStreamSynchronize", lane)
        return {name: view}

    def _run_bound(
        self, views: Mapping[str, cuda.DeviceView], inputs: Mapping[str, Any], outputs: list[str]
    ) -> dict[str, cuda.DeviceArray]:
        binding = self._session.io_binding()
        with self._blaming(inputs):
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
    def _blaming(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Turn what ONNX Runtime raises into a `BackendError` that names the inputs."""
        try:
            yield
        except Exception as error:  # its exceptions share no base class but this one
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            raise BackendError(f"{self.backend} could not run {shapes}: {first_line(error)}.") from error

    def close(self) -> None:
        super().close()
        self._session = None


def cuda_provider(gpu: int) -> tuple[str, dict[str, str]]:
    """The CUDA provider on a GPU, for a new session: FP32 is computed in FP32, where its default is TF32."""
    return PROVIDERS["cuda"], {"device_id": str(gpu), "use_tf32": "0"}


def _onnxruntime(device: Device) -> Any:
    """The onnxruntime module, if it can be imported and has the provider."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackage(f"ONNX Runtime is needed to run ONNX graphs, and it is not installed. Run: "
                             f"{install_onnxruntime()}") from error
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise BackendError(
            f"onnxruntime-cuda: the installed ONNX Runtime {onnxruntime.__version__} was built without CUDA. Run: "
            f"python -m pip uninstall onnxruntime; {install_command('gpu', 'onnxruntime-gpu')}"
        )
    if device == "cuda":
        preload(onnxruntime)
    return onnxruntime


def preload(onnxruntime: Any) -> None:
    """Load the CUDA libraries that pip installed; what ONNX Runtime cannot find, it would print."""
    with contextlib.redirect_stdout(io.StringIO()):
        onnxruntime.preload_dlls()
