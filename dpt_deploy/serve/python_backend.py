"""What Triton's Python backend runs: the runtime of this project on the requests of one model.

The server's process loads this through `model.py` of the model repository. `triton_python_backend_utils` is a module
of the server.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.compact import Form, form_of_output
from ..core.errors import BackendError, BadInput, ContractError, DptError, first_line
from ..runtime import Runtime, load

FOLDER = "bundle"


@dataclass
class Request:
    """A request that passed its checks."""

    index: int
    """Its position in the call."""
    frames: np.ndarray
    """uint8 (N, H, W, 3) RGB."""
    wanted: tuple[Form, ...]
    """The requested outputs."""


class TritonPythonModel:
    """The model as Triton's Python backend knows it. One object, in a process of its own, for each instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the runtime. An error ends the loading of the model, and its message stands in the server's log."""
        self._triton = importlib.import_module("triton_python_backend_utils")
        check_numpy(self._triton)
        config = json.loads(args["model_config"])
        parameters = {key: entry["string_value"] for key, entry in config["parameters"].items()}
        self.max_batch = max(1, int(config["max_batch_size"]))
        self.max_pixels = int(parameters["max_pixels"])
        self.outputs = {entry["name"]: form_of_output(entry["name"]) for entry in config["output"]}
        if args["model_instance_kind"] == "GPU":
            os.environ["CUDA_VISIBLE_DEVICES"] = _visible_gpu(int(args["model_instance_device_id"]))
        folder = Path(args["model_repository"]) / args["model_version"] / FOLDER
        threads = parameters.get("threads")
        self.runtime: Runtime = load(folder, parameters.get("backend") or None, precision=parameters["dpt_precision"],
                                     threads=int(threads) if threads else None)
        self._triton.Logger.log_info(f"{args['model_name']}: {self.runtime.reason}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response to each request. Requests for frames of equal size run as one batch."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[int, ...], list[Request]] = {}
        for index, request in enumerate(requests):
            try:
                checked = self._checked(index, request)
            except DptError as error:
                responses[index] = self._refusal(error)
            else:
                groups.setdefault(checked.frames.shape[1:], []).append(checked)
        for group in groups.values():
            for batch in self._batches(group):
                self._run(batch, responses)
        return responses

    def finalize(self) -> None:
        """Release the runtime."""
        self.runtime.close()

    def _checked(self, index: int, request: Any) -> Request:
        tensor = self._triton.get_input_tensor_by_name(request, "frame")
        if tensor is None:
            raise BadInput("frame: expected an input of this name, uint8 (N, H, W, 3) RGB, received none.")
        frames = tensor.as_numpy()
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
            raise BadInput(f"frame: expected uint8 RGB (N, H, W, 3) with values 0 to 255, received {frames.dtype} "
                           f"{frames.shape}.")
        count, height, width, _ = frames.shape
        if count * height * width > self.max_pixels:
            raise BadInput(f"frame: expected at most {self.max_pixels} pixels in a request, received "
                           f"{count}x{height}x{width}. Send smaller frames, or fewer in a request.")
        names = request.requested_output_names()
        if unknown := [name for name in names if self.outputs.get(name) is None]:
            raise BadInput(f"outputs: expected names among {', '.join(self.outputs)}, received {', '.join(unknown)}.")
        return Request(index, frames, tuple(self.outputs[name] for name in names))

    def _batches(self, group: list[Request]) -> list[list[Request]]:
        """Requests of one size, put together up to what the runtime and the limits take."""
        height, width = group[0].frames.shape[1:3]
        most = max(1, min(self.max_batch, self.max_pixels // (height * width),
                          self.runtime.session.largest_batch((height, width)) or self.max_batch))
        batches: list[list[Request]] = []
        room = 0
        for request in group:
            if not batches or len(request.frames) > room:
                batches.append([])
                room = most
            batches[-1].append(request)
            room -= len(request.frames)
        return batches

    def _run(self, batch: list[Request], responses: list[Any]) -> None:
        """Answer the requests of one batch. If it fails, each is tried by itself, so that one cannot fail another."""
        frames = [request.frames for request in batch]
        heads = [head for head in self.runtime.bundle.contract.heads
                 if any(form.head == head for request in batch for form in request.wanted)]
        try:
            maps = self.runtime.session.run({"frame": frames[0] if len(frames) == 1 else np.concatenate(frames)}, heads)
        except Exception as error:  # whatever a backend raises, the server goes on
            if len(batch) > 1:
                for request in batch:
                    self._run([request], responses)
            else:
                responses[batch[0].index] = self._refusal(error)
            return
        start = 0
        for request in batch:
            stop = start + len(request.frames)
            tensors = [self._triton.Tensor(form.output, np.ascontiguousarray(form.encode(maps[form.head][start:stop])))
                       for form in request.wanted]
            responses[request.index] = self._triton.InferenceResponse(tensors)
            start = stop

    def _refusal(self, error: Exception) -> Any:
        ours = isinstance(error, BadInput | ContractError)
        code = self._triton.TritonError.INVALID_ARG if ours else self._triton.TritonError.INTERNAL
        return self._triton.InferenceResponse(error=self._triton.TritonError(first_line(error) + ".", code))


def check_numpy(triton: Any) -> None:
    """Raise `BackendError` if arrays of this NumPy do not pass through the server's tensors.

    Triton 2.51 reads the size of a NumPy 2 array as zero: outputs would be empty, without an error. With NumPy 1 there
    is nothing to try, and `from_dlpack` would end the process.
    """
    if int(np.__version__.partition(".")[0]) < 2:
        return
    sent = np.arange(1, 7, dtype=np.float32)
    try:
        good = np.array_equal(triton.Tensor.from_dlpack("probe", sent).as_numpy(), sent)
    except Exception:  # a conversion that does not work raises exceptions of many types
        good = False
    if not good:
        raise BackendError(f"NumPy {np.__version__} does not work with this server's Python backend: outputs would be "
                           "empty. Install 'numpy<2' in the server's Python, or use a newer Triton release.")


def _visible_gpu(index: int) -> str:
    """The entry of CUDA_VISIBLE_DEVICES for a GPU as the server counts them."""
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    return visible[index] if index < len(visible) else str(index)
