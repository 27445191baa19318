"""Sessions on TensorRT and TensorRT-RTX engines, without PyTorch."""

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
from ..core.errors import BackendError, BadInput, Cause, ContractError, first_line, missing_package
from ..core.files import replacing
from ..core.install import reinstall_command
from ..core.manifest import Artifact
from . import cuda, device
from .engines import MODULES, EngineProfile, incompatibility, unserved_gpu
from .session import Session, host_array
from .stream_worker import StreamWorker

ERRORS_KEPT = 50
WORKERS = 2  # one computes while the other transfers; more workers only use more memory


class TensorRTSession(Session):
    """An engine of a bundle. Thread-safe: two calls run at a time, so that transfers overlap with compute.

    Host inputs (NumPy, DLPack) give NumPy outputs. An input on the GPU (`__dlpack__` or
    `__cuda_array_interface__`) is not copied, and every output is a `cuda.DeviceArray`, ready on the
    caller's `stream`, or complete without one. Do not modify such inputs before the work on the stream has
    finished.
    """

    concurrency = WORKERS

    def __init__(self, bundle: Bundle, artifact: Artifact, compile_eagerly: bool = False) -> None:
        """Load an engine on the current GPU.

        Args:
            bundle: The bundle of the engine.
            artifact: The engine.
            compile_eagerly: See `SessionOptions.compile_eagerly`. TensorRT ignores it.

        Raises:
            MissingPackage: The builder's package or cuda-python is not installed.
            BackendError: The engine is incompatible or cannot be loaded.
            BadBundle: The file does not match the manifest.
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
        # Last in, first out, so that a single thread always gets the worker that has its shapes.
        self._free: queue.LifoQueue[StreamWorker | None] = queue.LifoQueue()
        trt = self._module()
        cuda.cudart()
        if problem := unserved_gpu(artifact, device.compute_capability(), bundle.folder):
            raise BackendError(f"{self.file}: {problem.reason}. Instead, {problem.instead}.", Cause.DOES_NOT_FIT,
                               self.backend)
        if why := incompatibility(bundle, artifact, trt.__version__, device.compute_capability()):
            self._refuse(why)
        self._logger = _logger(trt)
        self.captures_internally = hasattr(trt, "IRuntimeCache")
        self._host_code = artifact.details.version_compatible
        self._compile_eagerly, self._graphs_refused = compile_eagerly, False
        try:
            self._load(trt, bundle.path(artifact).read_bytes())
        except BaseException:
            with contextlib.suppress(BackendError):  # report the first error
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
        except Exception as error:  # a missing or broken shared library raises various exceptions
            raise BackendError(f"the package {name} is installed but broken ({first_line(error)}). Run: "
                               f"{reinstall_command(name)}", Cause.BROKEN, self.backend) from error

    def _refuse(self, why: str) -> None:
        remedy = f"Build it again: {self._rebuild}"
        if device.compute_capability() is None:
            remedy = f"No GPU is visible: run it on a machine with a GPU, or use backend onnxruntime-cpu. {remedy}"
        raise BackendError(f"{self.file} {why}. {remedy}", Cause.DOES_NOT_FIT, self.backend)

    def _load(self, trt: Any, plan: bytes) -> None:
        self._logger.errors.clear()
        with contextlib.suppress(TypeError, RuntimeError):  # raised without a driver
            self._runtime = trt.Runtime(self._logger)
            if self._host_code:  # contains a lean runtime; trusted because its hash was checked
                self._runtime.engine_host_code_allowed = True
            self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            self._refuse(f"cannot be loaded here: {self._logger.last_errors()}")
        found = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        specs = self.inputs | self.outputs
        types = {name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name for name in found}
        if types != {name: spec.dtype for name, spec in specs.items()}:
            raise ContractError(f"{self.file}: expected the tensors {', '.join(specs)}, received {types}. "
                                f"Build it again: {self._rebuild}")
        self._device = cuda.call("cudaGetDevice")
        inputs, outputs = ({name: spec.dtype for name, spec in group.items()} for group in (self.inputs, self.outputs))
        for _ in range(WORKERS):
            self._all.append(StreamWorker(
                lambda: self._context(trt), inputs, outputs, self._expect, capture=not self.captures_internally
            ))
            self._free.put(self._all[-1])

    def _context(self, trt: Any) -> Any:
        """Create a context with user-managed scratch memory, because TensorRT would allocate it for the largest shape.

        TensorRT-RTX compiles kernels when a shape is first used, and its runtime cache stores them beside the engine.
        It captures CUDA graphs itself once the final kernels exist; a graph captured here could contain earlier ones.
        """
        user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.captures_internally:
            return self._checked(self._engine.create_execution_context(user_managed))
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(user_managed)
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._graphs_refused = config.cuda_graph_strategy != trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if self._compile_eagerly:
            eager = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = eager
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with contextlib.suppress(OSError):
                self._cache_bytes = self._cache_file.read_bytes()
                self._cache.deserialize(self._cache_bytes)  # rejects the cache of another GPU or version
        config.set_runtime_cache(self._cache)
        return self._checked(self._engine.create_execution_context(config))

    def _checked(self, context: Any) -> Any:
        if context is None:
            self._refuse(f"cannot create an execution context: {self._logger.last_errors()}")
        return context

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, Any]:
        shapes = {name: tuple(value.shape) for name, value in inputs.items()}
        self.profile.check(shapes, f"Resize or split the batch, build an engine with another profile ({self._rebuild} "
                           "--help), or use backend onnxruntime-cuda.")
        with self._worker() as worker:
            where = worker.stream if stream is None else stream
            (name, value), = inputs.items()  # every graph has one input
            if view := cuda.device_view(value, name, where, stream is not None, self._device):
                return worker.run_on_device({name: view}, tuple(shapes.items()), outputs, stream)
            return worker.run_on_host({name: host_array(value, name, contiguous=False)}, outputs)

    @contextlib.contextmanager
    def steps(self, inputs: Mapping[str, np.ndarray]) -> Iterator[tuple[int, dict[str, Callable[[], None]]]]:
        """A stream and functions that submit the steps of a call to it, for timing: h2d, engine, d2h."""
        with self._worker() as worker:
            yield worker.stream, worker.steps(inputs, list(self.outputs))

    @contextlib.contextmanager
    def _worker(self) -> Iterator[StreamWorker]:
        """Reserve a worker and make the session's GPU the current one."""
        worker = self._free.get()
        try:
            if self.closed or worker is None:
                raise BackendError(f"this {self.backend} session is closed. Load the bundle again.")
            self._logger.errors.clear()  # a failed capture may have left messages
            with cuda.on_device(self._device):
                yield worker
        finally:
            self._free.put(worker)

    @property
    def note(self) -> str:
        """Whether calls with host arrays use CUDA graphs.

        With TensorRT, valid after the second call of a shape, which is captured. With TensorRT-RTX, what the contexts
        answered after the last calls.
        """
        if self.captures_internally:
            if self._graphs_refused:
                return "without CUDA graphs: TensorRT-RTX refused to capture them"
            answers = {worker.capturable for worker in self._all} - {None}
            if False in answers:
                return "without CUDA graphs: TensorRT-RTX cannot capture this engine's work"
            return "with CUDA graphs of its own" + ("" if answers else " if it can capture the first call")
        why = next((worker.capture_error for worker in self._all if worker.capture_error), "")
        return f"without CUDA graphs: {why.rstrip('.')}" if why else "with CUDA graphs"

    def _expect(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise BackendError(f"{self.file} {what}: {self._logger.last_errors()}", backend=self.backend)

    def close(self) -> None:
        """Release the engine, its memory and its streams after the calls that use them."""
        with self._closing:
            if self.closed:
                return
            super().close()
            for _ in self._all:
                self._free.get()  # waits for running calls
            self._free.put(None)  # wakes waiting calls
            with contextlib.ExitStack() as stack:  # last in, first out; runs every callback even if one raises
                stack.callback(self._release_engine)
                if self._all:
                    stack.enter_context(cuda.on_device(self._device))
                    stack.callback(cuda.trim_pool, self._device)
                for worker in self._all:
                    stack.callback(worker.close)
                stack.callback(self._save_cache)

    def _release_engine(self) -> None:
        # Contexts must be released before their engine, and the engine before its runtime.
        self._all.clear()
        self._cache = self._engine = None
        self._runtime = None

    def _save_cache(self) -> None:
        """Write TensorRT-RTX's compiled kernels beside the engine if they changed and the folder is writable."""
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
    """The logger of all objects of this builder. It stores the last errors."""

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
            """Return the stored errors in one line and clear them."""
            text = "; ".join(dict.fromkeys(self.errors)) or "no reason given"
            self.errors.clear()
            return text.replace("\n", " ")

    return ErrorLog()
