"""Engines on TensorRT and TensorRT-RTX, which share one API; torch is not needed."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import logging
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.bundle import Artifact, Bundle
from ..core.errors import BackendError, BadInput, ContractError, missing_package
from ..core.files import replacing
from ..core.install import install_command
from . import cuda, device
from .lane import Lane
from .session import Session, first_line, host_array

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
WORDS_KEPT = 50
LANES = 2  # one computes while the other's frames are on their way; more would only cost memory


@dataclass(frozen=True)
class Profile:
    """The shapes that an engine takes, from the manifest."""

    file: str
    ranges: Mapping[str, Mapping[str, Sequence[int]]]
    """Per input, the smallest and the largest shape, as `min` and `max`."""
    max_pixels: int | None = None
    """Largest product of batch, height and width of a frame graph's input; None for a model graph."""

    @classmethod
    def of(cls, artifact: Artifact) -> Profile:
        """The profile of an engine."""
        return cls(artifact.file, artifact.details.get("profile", {}), artifact.details.get("max_pixels"))

    def check(self, shapes: Mapping[str, tuple[int, ...]], remedy: str) -> None:
        """Raise `ContractError`, naming the range and what was received, for shapes outside of it."""
        for name, shape in shapes.items():
            if name not in self.ranges:
                continue
            low, high = self.ranges[name]["min"], self.ranges[name]["max"]
            limit = f"from {list(low)} to {list(high)}"
            outside = not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
            if self.max_pixels:
                limit += f" with at most {self.max_pixels} pixels in a batch"
                outside = outside or math.prod(shape[:3]) > self.max_pixels
            if outside:
                raise ContractError(f"{name}: {self.file} takes shapes {limit}, received {list(shape)}. {remedy}")

    def largest_batch(self, size: tuple[int, int]) -> int | None:
        """The largest batch of frames of `size` (H, W); at least 1, so that `check` names what does not fit."""
        batches = [shapes["max"][0] for shapes in self.ranges.values()]
        if self.max_pixels:
            batches.append(self.max_pixels // (size[0] * size[1]))
        return max(1, min(batches)) if batches else None


def misfit(bundle: Bundle, artifact: Artifact, version: str, capability: str | None) -> str | None:
    """Why an engine does not fit this builder's `version`, this GPU's compute `capability`, or its graph; or None."""
    details = artifact.details
    builder, built_by = details["builder"], details.get("builder_version")
    if details.get("weights") == "stripped":
        return (f"holds no weights; put them back with: python -m dpt_deploy.build {bundle.folder} "
                f"--refit {bundle.folder}")
    if built_by != version and not (details.get("version_compatible") and _not_older(version, built_by)):
        return (f"was built by {builder} {built_by}, and {version} is installed here; engines run only on the version "
                "that built them")
    built_for = details.get("compute_capability")
    from_ampere_on = details.get("hardware_compatible") and _not_older(capability, "8.0")
    if built_for and capability and built_for != capability and not from_ampere_on:
        return f"was built for a GPU of compute capability {built_for}, and this one has {capability}"
    graphs = bundle.find("onnx", graph=artifact.graph, precision=artifact.precision)
    if graphs and "made_from" in details and details["made_from"] not in [graph.sha256 for graph in graphs]:
        return f"was built from another graph than {graphs[0].file}, which was exported since"
    return None


def _not_older(version: str | None, than: str | None) -> bool:
    """Whether a dotted version is the other or a later one."""
    numbers = [tuple(int(part) for part in text.split(".") if part.isdecimal()) for text in (version or "", than or "")]
    return bool(numbers[1]) and numbers[0] >= numbers[1]


class TensorRTSession(Session):
    """An engine of a bundle. Calls from many threads are right: two run at a time, so that transfers overlap compute.

    Host inputs (NumPy, DLPack) give NumPy outputs. An input on the GPU (`__dlpack__` or
    `__cuda_array_interface__`) is used where it is, without a copy, and makes every output a
    `cuda.DeviceArray`: ready on the caller's `stream`, or complete when no stream is given. The caller
    keeps such inputs unchanged until the work on that stream is done.
    """

    lanes = LANES

    def __init__(self, bundle: Bundle, artifact: Artifact) -> None:
        """Load an engine on the current GPU.

        Raises `MissingPackage` without the builder's package or cuda-python; `BackendError`, with what
        rebuilds the engine, for another version or GPU, or with the builder's own words when it
        refuses; `BadBundle` for a file that is not the manifest's.
        """
        super().__init__(bundle.contract, artifact.graph)
        self.backend = artifact.details["builder"]
        self.file = artifact.file
        self.profile = Profile.of(artifact)
        self._rebuild = f"python -m dpt_deploy.build {bundle.folder}"
        self._closing = threading.Lock()
        self._runtime = self._engine = self._cache = None
        self._cache_file, self._cache_bytes = bundle.folder / f"{artifact.file}.cache", b""
        self._all: list[Lane] = []
        # Last in, first out: who calls from one thread always gets the lane that has his shapes.
        self._free: queue.LifoQueue[Lane | None] = queue.LifoQueue()
        trt = self._module()
        cuda.cudart()
        if why := misfit(bundle, artifact, trt.__version__, device.compute_capability()):
            self._refuse(why)
        self._logger = _logger(trt)
        self.captures_itself = hasattr(trt, "IRuntimeCache")
        self._host_code = bool(artifact.details.get("version_compatible"))
        try:
            self._load(trt, bundle.path(artifact).read_bytes())
        except BaseException:
            with contextlib.suppress(BackendError):  # the first error is the one to tell
                self.close()
            raise

    def largest_batch(self, size: tuple[int, int]) -> int | None:
        return self.profile.largest_batch(size)

    def _module(self) -> Any:
        name = MODULES[self.backend]
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise missing_package(name, self.backend, f"run {self.file}") from error
        except Exception as error:  # a library that is missing or broken surfaces in many ways
            raise BackendError(f"{self.backend}: the package {name} cannot be imported ({first_line(error)}). "
                               f"Run: {install_command(self.backend, name, flags=('--force-reinstall',))}") from error

    def _refuse(self, why: str) -> None:
        remedy = f"Build it again: {self._rebuild}"
        if device.compute_capability() is None:
            remedy = f"No GPU is visible here: run it where one is, or use backend onnxruntime-cpu. {remedy}"
        raise BackendError(f"{self.backend}: {self.file} {why}. {remedy}")

    def _load(self, trt: Any, plan: bytes) -> None:
        self._logger.words.clear()
        with contextlib.suppress(TypeError, RuntimeError):  # without a driver, TensorRT has no runtime to give
            self._runtime = trt.Runtime(self._logger)
            if self._host_code:  # it carries its own lean runtime; its hash is the manifest's
                self._runtime.engine_host_code_allowed = True
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            self._refuse(f"cannot be loaded here: {self._logger.said()}")
        found = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        specs = self.inputs | self.outputs
        types = {name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name for name in found}
        if types != {name: spec.dtype for name, spec in specs.items()}:
            raise ContractError(f"{self.file}: expected the tensors {', '.join(specs)}, found {types}. "
                                f"Build it again: {self._rebuild}")
        self._device = cuda.call("cudaGetDevice")
        specs = ({name: spec.dtype for name, spec in group.items()} for group in (self.inputs, self.outputs))
        inputs, outputs = specs
        for _ in range(LANES):
            self._all.append(Lane(
                lambda: self._context(trt), inputs, outputs, self._expect, capture=not self.captures_itself
            ))
            self._free.put(self._all[-1])

    def _context(self, trt: Any) -> Any:
        """A context whose scratch memory is ours: TensorRT itself would take what the profile's largest shape needs.

        TensorRT-RTX compiles kernels for shapes as they come. Its runtime cache keeps them beside the
        engine, and its own CUDA graphs begin when the final kernels are there: ours would keep early ones.
        """
        user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.captures_itself:
            return self._made(self._engine.create_execution_context(user_managed))
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(user_managed)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):
                self._cache_bytes = self._cache_file.read_bytes()
                self._cache.deserialize(self._cache_bytes)  # refuses what another GPU or version wrote
        config.set_runtime_cache(self._cache)
        return self._made(self._engine.create_execution_context(config))

    def _made(self, context: Any) -> Any:
        if context is None:
            self._refuse(f"gives no execution context: {self._logger.said()}")
        return context

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, Any]:
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        self.profile.check(shapes, f"Resize or split it, build an engine with another profile ({self._rebuild} "
                           "--help), or use backend onnxruntime-cuda.")
        with self._lane() as lane:
            where = lane.stream if stream is None else stream
            (name, value), = inputs.items()  # every graph has one input
            if view := cuda.device_view(value, name, where, stream is not None, self._device):
                return lane.on_device({name: view}, tuple(shapes.items()), outputs, stream)
            return lane.on_host({name: host_array(value, name, contiguous=False)}, outputs)

    @contextlib.contextmanager
    def steps(self, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[int, dict[str, Callable[[], None]]]]:
        """A stream, and what a call with host inputs puts on it: h2d, engine, d2h. For timing each by itself."""
        with self._lane() as lane:
            yield lane.stream, lane.steps(inputs, list(self.outputs))

    @contextlib.contextmanager
    def _lane(self) -> Iterator[Lane]:
        """A lane that nobody else uses meanwhile, with the session's GPU as the current one."""
        lane = self._free.get()
        try:
            if self.closed or lane is None:
                raise BackendError(f"this {self.backend} session is closed. Load the bundle again.")
            self._logger.words.clear()  # what a failed capture left behind is not of this call
            with cuda.on_device(self._device):
                yield lane
        finally:
            self._free.put(lane)

    @property
    def note(self) -> str:
        """Whether calls with host arrays run as CUDA graphs; known after the first call of a shape."""
        if self.captures_itself:
            return "with CUDA graphs of its own"
        why = next((lane.why_not for lane in self._all if lane.why_not), "")
        return f"without CUDA graphs: {why.rstrip('.')}" if why else "with CUDA graphs"

    def _expect(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise BackendError(f"{self.backend}: {self.file} {what}: {self._logger.said()}")

    def close(self) -> None:
        """Release the engine, its memory and its streams, after the work that uses them."""
        with self._closing:
            if self.closed:
                return
            super().close()
            for _ in self._all:
                self._free.get()  # whoever holds a lane finishes first
            self._free.put(None)  # wakes whoever waits for one
            with contextlib.ExitStack() as last_first:  # each one runs, whatever another raises
                last_first.callback(self._forget)
                if self._all:
                    last_first.enter_context(cuda.on_device(self._device))
                    last_first.callback(cuda.trim_pool, self._device)
                for lane in self._all:
                    last_first.callback(lane.close)
                last_first.callback(self._keep_cache)

    def _forget(self) -> None:
        # One after the other: a context lives in its engine, and that in its runtime.
        self._all.clear()
        self._cache = None
        self._engine = None
        self._runtime = None

    def _keep_cache(self) -> None:
        """Write TensorRT-RTX's compiled kernels beside the engine, where that is possible and something is new."""
        if self._cache is None:
            return
        with contextlib.suppress(BadInput, RuntimeError, OSError):  # a bundle may be read-only
            memory = self._cache.serialize()
            content = b"" if memory is None else bytes(memory)
            if content and content != self._cache_bytes:
                with replacing(self._cache_file) as temporary:
                    temporary.write_bytes(content)


@functools.cache
def _logger(trt: Any) -> Any:
    """The one logger that this builder's objects share; it keeps the builder's last errors."""

    class Words(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.words: collections.deque[str] = collections.deque(maxlen=WORDS_KEPT)
            self._log = logging.getLogger("dpt_deploy.tensorrt")

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.words.append(message.strip())
            self._log.debug("%s: %s", severity, message)

        def said(self) -> str:
            """The errors since the last time, in one line."""
            said = "; ".join(dict.fromkeys(self.words)) or "without giving a reason"
            self.words.clear()
            return said.replace("\n", " ")

    return Words()
