"""ONNX graphs on ONNX Runtime, on the CPU or through the CUDA provider."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..bundle import Artifact, Bundle
from ..errors import BackendError, ContractError, MissingPackage
from .session import Session, host_array, no_stream

Device = Literal["cpu", "cuda"]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
INSTALL = "pip install 'dpt-deploy[cpu]', or on a machine with an NVIDIA GPU: pip install 'dpt-deploy[gpu]'"


class OnnxRuntimeSession(Session):
    """An ONNX graph of a bundle. Calls from many threads at a time are right.

    Host inputs give NumPy outputs. With the CUDA provider, device inputs are used where they are.
    """

    def __init__(self, bundle: Bundle, artifact: Artifact, device: Device = "cpu", threads: int | None = None) -> None:
        """`threads`: how many threads one operator may use on the CPU; None lets ONNX Runtime decide.

        Raises `MissingPackage` without ONNX Runtime, `BackendError` when the provider is not active or
        the graph does not load, `BadBundle` and `ContractError` when the file is not the manifest's.
        """
        super().__init__(bundle.contract, artifact.graph)
        self.backend = f"onnxruntime-{device}"
        ort = _onnxruntime(device)
        path = bundle.path(artifact)
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised below
        if threads is not None:
            options.intra_op_num_threads = threads
        providers = [PROVIDERS["cuda"], PROVIDERS["cpu"]] if device == "cuda" else [PROVIDERS["cpu"]]
        try:
            session = ort.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # its exceptions share no base class but this one
            raise BackendError(
                f"{self.backend} cannot load {path}: {_first_line(error)}. Choose another precision or backend."
            ) from error
        if PROVIDERS[device] not in session.get_providers():
            raise BackendError(
                f"onnxruntime-cuda: expected {PROVIDERS[device]} to be active, but ONNX Runtime {ort.__version__} fell "
                f"back to {', '.join(session.get_providers())}. Check that nvidia-smi lists a GPU, and that the CUDA and "
                "cuDNN libraries are those of this version: pip install 'dpt-deploy[gpu]'"
            )
        embedded = session.get_modelmeta().custom_metadata_map.get("contract")
        bundle.check_contract(json.loads(embedded) if embedded else None, artifact.file)
        names = [value.name for value in (*session.get_inputs(), *session.get_outputs())]
        if names != [*self.inputs, *self.outputs]:
            raise ContractError(f"{path}: expected inputs and outputs {[*self.inputs, *self.outputs]}, found {names}. "
                                "Export the checkpoint again.")
        self._session = session

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, Any]:
        no_stream(stream, self.backend)
        feeds = {name: host_array(value, name) for name, value in inputs.items()}
        try:
            return dict(zip(outputs, self._session.run(outputs, feeds), strict=True))
        except Exception as error:
            raise BackendError(f"{self.backend} could not run {_shapes(feeds)}: {_first_line(error)}.") from error

    def close(self) -> None:
        super().close()
        self._session = None


def _onnxruntime(device: Device) -> Any:
    """The onnxruntime module, if it can be imported and has the provider."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackage(f"ONNX Runtime is needed to run ONNX graphs, and it is not installed. Run: {INSTALL}"
                             ) from error
    if PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise BackendError(
            f"onnxruntime-cuda: the installed ONNX Runtime {onnxruntime.__version__} was built without CUDA. Run: "
            "pip uninstall onnxruntime; pip install 'dpt-deploy[gpu]'"
        )
    return onnxruntime


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _shapes(feeds: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
