"""A CUDA stream with the execution contexts and memory of an engine, reused across calls.

For each combination of input shapes and requested outputs, a worker keeps a slot: an execution context, device buffers,
pinned host buffers and, with TensorRT, a captured CUDA graph of upload, network and download. Later calls of the same
combination allocate neither device nor pinned memory. The least recently used slot is evicted. All contexts share one
scratch buffer. The shapes of a context never change while a CUDA graph of it exists.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np

from ..core.errors import BackendError
from . import cuda

SHAPES_KEPT = 4

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
Key = tuple[Shapes, tuple[str, ...]]
"""Input shapes and requested outputs."""


class Slot:
    """A context, device buffers of all tensors, and pinned buffers of inputs and requested outputs, for one key."""

    def __init__(
        self, context: Any, specs: Mapping[str, tuple[tuple[int, ...], np.dtype]], on_host: Container[str]
    ) -> None:
        self.context = context
        self.bound = False
        """Whether the tensor addresses of the context are set."""
        self.device: dict[str, cuda.DeviceBuffer] = {}
        self.pinned: dict[str, cuda.PinnedBuffer] = {}
        self.host: dict[str, np.ndarray] = {}
        self.graph: Any = None
        """An executable CUDA graph, or None."""
        for name, (shape, dtype) in specs.items():
            nbytes = math.prod(shape) * dtype.itemsize
            self.device[name] = cuda.DeviceBuffer()
            self.device[name].reserve(nbytes)
            if name in on_host:
                self.pinned[name] = cuda.PinnedBuffer(nbytes)
                self.host[name] = self.pinned[name].array(shape, dtype)

    def unbind(self) -> None:
        """Discard the CUDA graph and the tensor addresses. The next call sets and captures them again."""
        self.bound = False
        if self.graph is not None:
            graph, self.graph = self.graph, None
            cuda.call("cudaGraphExecDestroy", graph)

    def free(self) -> None:
        """Release the context and its memory."""
        self.unbind()
        self.context = None
        self.host.clear()
        for buffer in (*self.device.values(), *self.pinned.values()):
            buffer.free()


class StreamWorker:
    """Runs an engine on its own stream. Used by one call at a time."""

    def __init__(
        self, create_context: Callable[[], Any], inputs: Mapping[str, str], outputs: Mapping[str, str],
        expect: Callable[[bool, str], None], capture: bool,
    ) -> None:
        """Create the stream.

        Args:
            create_context: Creates an execution context.
            inputs: Dtypes by input name.
            outputs: Dtypes by output name.
            expect: `expect(succeeded, what)` raises an error with the builder's messages unless `succeeded`.
            capture: Whether to capture CUDA graphs. False if the builder's runtime does so.
        """
        self.context = create_context()
        """The context of calls with device arrays. Its shapes and addresses change with every call."""
        self.capture = capture
        self.capture_error = ""
        """The error of a failed capture, after which no CUDA graphs are used."""
        self._create_context = create_context
        self._expect = expect
        self._inputs = {name: np.dtype(dtype) for name, dtype in inputs.items()}
        self._outputs = {name: np.dtype(dtype) for name, dtype in outputs.items()}
        self._slots: collections.OrderedDict[Key, Slot] = collections.OrderedDict()
        self._scratch = cuda.DeviceBuffer()
        self._device_outputs = {name: cuda.DeviceBuffer() for name in outputs}
        self.stream: int | None = int(cuda.call("cudaStreamCreateWithFlags", cuda.cudart().cudaStreamNonBlocking))
        self._done = cuda.call("cudaEventCreateWithFlags", cuda.cudart().cudaEventDisableTiming)

    def run_on_host(self, inputs: Mapping[str, np.ndarray], wanted: list[str]) -> dict[str, np.ndarray]:
        """Run on host arrays and return new NumPy arrays that are complete."""
        # Work on a caller's stream may still use the scratch buffer.
        cuda.call("cudaStreamWaitEvent", self.stream, self._done, 0)
        slot = self._slot(inputs, wanted)
        if slot.graph is not None:
            cuda.call("cudaGraphLaunch", slot.graph, self.stream)
        else:
            self._bind(slot)
            self._enqueue(slot)
        cuda.call("cudaEventRecord", self._done, self.stream)
        cuda.call("cudaStreamSynchronize", self.stream)
        results = {name: slot.host[name].copy() for name in wanted}
        if slot.graph is None and self.capture:
            self._capture(slot)  # capture requires a preceding run with the same shapes
        return results

    def steps(self, inputs: Mapping[str, np.ndarray], wanted: list[str]) -> dict[str, Callable[[], None]]:
        """Functions that submit the steps of `run_on_host` one by one, for timing: h2d, engine, d2h."""
        slot = self._slot(inputs, wanted)
        self._bind(slot)
        steps = {"h2d": self._upload, "engine": self._compute, "d2h": self._download}
        return {name: functools.partial(step, slot) for name, step in steps.items()}

    def run_on_device(
        self, views: Mapping[str, cuda.DeviceView], shapes: Shapes, wanted: list[str], stream: int | None
    ) -> dict[str, cuda.DeviceArray]:
        """Run on device memory without copying it, and return new device arrays.

        Inputs and outputs are ready on the caller's `stream`. If it is None, outputs are complete on return.
        """
        default = stream is None or stream in cuda.DEFAULT_STREAMS
        target = self.stream if default else stream  # TensorRT synchronises on default streams
        cuda.call("cudaStreamWaitEvent", target, self._done, 0)
        self._set_shapes(self.context, shapes)
        for name, view in views.items():
            self._expect(self.context.set_tensor_address(name, view.pointer), f"rejects the memory of {name}")
        results = {}
        for name, (shape, dtype) in self._output_specs(self.context).items():
            if name in wanted:
                results[name] = cuda.DeviceArray.empty(shape, dtype, stream)
                pointer = results[name].pointer
            else:
                buffer, nbytes = self._device_outputs[name], math.prod(shape) * dtype.itemsize
                if nbytes > buffer.nbytes:  # growing frees the memory, which may still be in use
                    cuda.call("cudaEventSynchronize", self._done)
                pointer = buffer.reserve(nbytes)
            self._expect(self.context.set_tensor_address(name, pointer), f"rejects the memory of {name}")
        self._reserve_scratch(self.context)
        if default:
            # The inputs and the memory of the outputs must be ready.
            cuda.wait_stream(target, stream or cuda.LEGACY_STREAM)
        self._expect(self.context.execute_async_v3(target), f"could not run {dict(shapes)}")
        cuda.call("cudaEventRecord", self._done, target)
        if stream is None:
            cuda.call("cudaStreamSynchronize", target)
        elif default:
            cuda.wait_stream(stream, target)
        return {name: results[name] for name in wanted}

    def close(self) -> None:
        """Release memory, CUDA graphs and stream after the work that uses them."""
        if self.stream is None:
            return
        cuda.call("cudaEventSynchronize", self._done)
        cuda.call("cudaStreamSynchronize", self.stream)
        for slot in self._slots.values():
            slot.free()
        self._slots.clear()
        self.context = None
        for buffer in (self._scratch, *self._device_outputs.values()):
            buffer.free()
        cuda.call("cudaEventDestroy", self._done)
        cuda.call("cudaStreamDestroy", self.stream)
        self.stream = self._done = None

    def _slot(self, inputs: Mapping[str, np.ndarray], wanted: list[str]) -> Slot:
        """The slot for this call, filled with the inputs. A new slot evicts the least recently used one."""
        shapes: Shapes = tuple((name, inputs[name].shape) for name in self._inputs)
        key = (shapes, tuple(name for name in self._outputs if name in wanted))
        if key not in self._slots:
            context = self._create_context()
            self._set_shapes(context, shapes)
            while len(self._slots) >= SHAPES_KEPT:
                cuda.call("cudaStreamSynchronize", self.stream)
                self._slots.popitem(last=False)[1].free()
            specs = {name: (shape, self._inputs[name]) for name, shape in shapes} | self._output_specs(context)
            self._slots[key] = Slot(context, specs, (*self._inputs, *key[1]))
        self._slots.move_to_end(key)
        slot = self._slots[key]
        for name in self._inputs:
            np.copyto(slot.host[name], inputs[name])
        return slot

    def _set_shapes(self, context: Any, shapes: Shapes) -> None:
        for name, shape in shapes:
            self._expect(context.set_input_shape(name, shape), f"rejects the shape {list(shape)} of {name}")

    def _output_specs(self, context: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of the outputs for the input shapes of the context."""
        specs = {}
        for name, dtype in self._outputs.items():
            shape = tuple(context.get_tensor_shape(name))
            self._expect(len(shape) > 0 and min(shape) > 0, f"returned the invalid shape {list(shape)} for {name}")
            specs[name] = (shape, dtype)
        return specs

    def _bind(self, slot: Slot) -> None:
        if slot.bound:
            return
        for name, buffer in slot.device.items():
            self._expect(slot.context.set_tensor_address(name, buffer.pointer), f"rejects the memory of {name}")
        self._reserve_scratch(slot.context)
        slot.bound = True

    def _reserve_scratch(self, context: Any) -> None:
        """Set scratch memory for the context's shapes. If it moves, CUDA graphs with its address are discarded."""
        nbytes = context.update_device_memory_size_for_shapes()
        if nbytes > self._scratch.nbytes:
            cuda.call("cudaEventSynchronize", self._done)
            for slot in self._slots.values():
                slot.unbind()
        context.set_device_memory(self._scratch.reserve(nbytes), self._scratch.nbytes)

    def _enqueue(self, slot: Slot) -> None:
        self._upload(slot)
        self._compute(slot)
        self._download(slot)

    def _upload(self, slot: Slot) -> None:
        for name in self._inputs:
            self._copy(slot.device[name].pointer, slot.pinned[name].pointer, slot.host[name].nbytes, "HostToDevice")

    def _compute(self, slot: Slot) -> None:
        self._expect(slot.context.execute_async_v3(self.stream), "could not run")

    def _download(self, slot: Slot) -> None:
        for name in self._outputs:
            if name in slot.host:
                self._copy(slot.pinned[name].pointer, slot.device[name].pointer, slot.host[name].nbytes, "DeviceToHost")

    def _copy(self, to: int, source: int, nbytes: int, kind: str) -> None:
        kind = getattr(cuda.cudart().cudaMemcpyKind, f"cudaMemcpy{kind}")
        cuda.call("cudaMemcpyAsync", to, source, nbytes, kind, self.stream)

    def _capture(self, slot: Slot) -> None:
        """Capture `_enqueue` as a CUDA graph. If that fails, run without CUDA graphs from now on."""
        try:
            slot.graph = cuda.capture(self.stream, functools.partial(self._enqueue, slot))
        except BackendError as error:
            self.capture, self.capture_error = False, str(error)
