"""Engines on TensorRT and TensorRT-RTX, which share one API; torch is not needed."""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ..core.bundle import Bundle
from ..core.errors import BackendError, BadInput, Cause, ContractError, missing_package
from ..core.files import replacing
from ..core.install import reinstall_command
from ..core.manifest import Artifact
from . import cuda, device
from .engines import MODULES, EngineProfile, misfit
from .session import Session, first_line, host_array
from .stream_worker import StreamWorker

ERRORS_KEPT = 50
WORKERS = 2  # one computes while the other's frames are on their way; more would only cost memory


class TensorRTSession(Session):
    """An engine of a bundle. Thread-safe: two calls run at a time, so that transfers overlap compute.

    Host inputs (NumPy, DLPack) give NumPy outputs. An input on the GPU (`__dlpack__` or
    `__cuda_array_interface__`) is used where it is, without a copy, and makes every output a
    `cuda.DeviceArray`: ready on the caller's `stream`, or complete when no stream is given. The caller
    keeps such inputs unchanged until the work on that stream is done.
    """

    concurrency = WORKERS

    def __init__(self, bundle: Bundle, artifact: Artifact) -> None:
        """Load an engine on the current GPU.

        Raises `MissingPackage` without the builder's package or cuda-python; `BackendError`, with what
        rebuilds the engine, for another version or GPU, or with the builder's own words when it
        refuses; `BadBundle` for a file that is not the manifest's.
        """
        super().__init__(bundle.contract, artifact.graph)
        self.backend = artifact.details.builder
        self.file = artifact.file
        self.profile = EngineProfile.of(artifact)
        self._rebuild = f"python -m dpt_deploy.build {bundle.folder}"
        self._closing = threading.Lock()
        self._runtime = self._engine = self._cache = None
        self._cache_file, self._cache_bytes = bundle.folder / f"{artifact.file}.cache", b""
        self._all: list[StreamWorker] = []
        # Last in, first out: who calls from one thread always gets the worker that has his shapes.
        self._free: queue.LifoQueue[StreamWorker | None] = queue.LifoQueue()
        trt = self._module()
        cuda.cudart()
        if why := misfit(bundle, artifact, trt.__version__, device.compute_capability()):
            self._refuse(why)
        self._logger = _logger(trt)
        self.captures_itself = hasattr(trt, "IRuntimeCache")
        self._host_code = artifact.details.version_compatible
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
            raise BackendError(f"{self.backend}: the package {name} is installed but broken ({first_line(error)}). "
                               f"Run: {reinstall_command(name)}", Cause.BROKEN) from error

    def _refuse(self, why: str) -> None:
        remedy = f"Build it again: {self._rebuild}"
        if device.compute_capability() is None:
            remedy = f"No GPU is visible here: run it where one is, or use backend onnxruntime-cpu. {remedy}"
        raise BackendError(f"{self.backend}: {self.file} {why}. {remedy}", Cause.DOES_NOT_FIT)

    def _load(self, trt: Any, plan: bytes) -> None:
        self._logger.errors.clear()
        with contextlib.suppress(TypeError, RuntimeError):  # without a driver, TensorRT has no runtime to give
            self._runtime = trt.Runtime(self._logger)
            if self._host_code:  # it carries its own lean runtime; its hash is the manifest's
                self._runtime.engine_host_code_allowed = True
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            self._refuse(f"cannot be loaded here: {self._logger.last_errors()}")
        found = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        specs = self.inputs | self.outputs
        types = {name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name for name in found}
        if types != {name: spec.dtype for name, spec in specs.items()}:
            raise ContractError(f"{self.file}: expected the tensors {', '.join(specs)}, found {types}. "
                                f"Build it again: {self._rebuild}")
        self._device = cuda.call("cudaGetDevice")
        specs = ({name: spec.dtype for name, spec in group.items()} for group in (self.inputs, self.outputs))
        inputs, outputs = specs
        for _ in range(WORKERS):
            self._all.append(StreamWorker(
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
            self._refuse(f"gives no execution context: {self._logger.last_errors()}")
        return context

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, Any]:
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        self.profile.check(shapes, f"Resize or split it, build an engine with another profile ({self._rebuild} "
                           "--help), or use backend onnxruntime-cuda.")
        with self._worker() as worker:
            where = worker.stream if stream is None else stream
            (name, value), = inputs.items()  # every graph has one input
            if view := cuda.device_view(value, name, where, stream is not None, self._device):
                return worker.on_device({name: view}, tuple(shapes.items()), outputs, stream)
            return worker.on_host({name: host_array(value, name, contiguous=False)}, outputs)

    @contextlib.contextmanager
    def steps(self, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[int, dict[str, Callable[[], None]]]]:
        """A stream, and what a call with host inputs puts on it: h2d, engine, d2h. For timing each by itself."""
        with self._worker() as worker:
            yield worker.stream, worker.steps(inputs, list(self.outputs))

    @contextlib.contextmanager
    def _worker(self) -> Iterator[StreamWorker]:
        """A worker that nobody else uses meanwhile, with the session's GPU as the current one."""
        worker = self._free.get()
        try:
            if self.closed or worker is None:
                raise BackendError(f"this {self.backend} session is closed. Load the bundle again.")
            self._logger.errors.clear()  # what a failed capture left behind is not of this call
            with cuda.on_device(self._device):
                yield worker
        finally:
            self._free.put(worker)

    @property
    def note(self) -> str:
        """Whether calls with host arrays run as CUDA graphs; known after the first call of a shape."""
        if self.captures_itself:
            return "with CUDA graphs of its own"
        why = next((worker.why_not for worker in self._all if worker.why_not), "")
        return f"without CUDA graphs: {why.rstrip('.')}" if why else "with CUDA graphs"

    def _expect(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise BackendError(f"{self.backend}: {self.file} {what}: {self._logger.last_errors()}")

    def close(self) -> None:
        """Release the engine, its memory and its streams, after the work that uses them."""
        with self._closing:
            if self.closed:
                return
            super().close()
            for _ in self._all:
                self._free.get()  # whoever holds a worker finishes first
            self._free.put(None)  # wakes whoever waits for one
            with contextlib.ExitStack() as last_first:  # each one runs, whatever another raises
                last_first.callback(self._forget)
                if self._all:
                    last_first.enter_context(cuda.on_device(self._device))
                    last_first.callback(cuda.trim_pool, self._device)
                for worker in self._all:
                    last_first.callback(worker.close)
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

    class ErrorLog(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: collections.deque[str] = collections.deque(maxlen=ERRORS_KEPT)
            self._log = logging.getLogger("dpt_deploy.tensorrt")

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message.strip())
            self._log.debug("%s: %s", severity, message)

        def last_errors(self) -> str:
            """The errors since the last time, in one line."""
            text = "; ".join(dict.fromkeys(self.errors)) or "without giving a reason"
            self.errors.clear()
            return text.replace("\n", " ")

    return ErrorLog()
