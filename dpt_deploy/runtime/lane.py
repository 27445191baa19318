"""One engine's execution context with its stream and memory: what a call needs, kept from call to call.

Per input shape, a lane keeps device buffers, pinned host buffers and, with TensorRT, a captured CUDA graph of upload,
network and download. After the first call of a shape nothing more is allocated on the device or pinned for it. The
number of shapes kept is bounded; the least recently used one goes.
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import BackendError
from . import cuda
from .session import host_array

SHAPES_KEPT = 4

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class Slot:
    """Memory for one input shape: by tensor name, on the device and pinned on the host."""

    def __init__(self, specs: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> None:
        self.device: dict[str, cuda.DeviceBuffer] = {}
        self.pinned: dict[str, cuda.PinnedBuffer] = {}
        self.host: dict[str, np.ndarray] = {}
        self.graph: Any = None
        """An instantiated CUDA graph, or None."""
        for name, (shape, dtype) in specs.items():
            nbytes = math.prod(shape) * dtype.itemsize
            self.device[name] = cuda.DeviceBuffer()
            self.device[name].reserve(nbytes)
            self.pinned[name] = cuda.PinnedBuffer(nbytes)
            self.host[name] = self.pinned[name].array(shape, dtype)

    def drop_graph(self) -> None:
        """Forget the captured graph; the next call captures anew."""
        if self.graph is not None:
            graph, self.graph = self.graph, None
            cuda.call("cudaGraphExecDestroy", graph)

    def free(self) -> None:
        """Give everything back."""
        self.drop_graph()
        self.host.clear()
        for buffer in (*self.device.values(), *self.pinned.values()):
            buffer.free()


class Lane:
    """An execution context, used by one call at a time."""

    def __init__(
        self, context: Any, inputs: Mapping[str, str], outputs: Mapping[str, str], expect: Callable[[bool, str], None],
        capture: bool,
    ) -> None:
        """`inputs` and `outputs` are dtypes by name; `expect(succeeded, what)` raises in the builder's words.

        `capture`: keep a CUDA graph per shape. False where the builder's runtime captures by itself.
        """
        self.context = context
        self.capture = capture
        self._expect = expect
        self._inputs = {name: np.dtype(dtype) for name, dtype in inputs.items()}
        self._outputs = {name: np.dtype(dtype) for name, dtype in outputs.items()}
        self._slots: collections.OrderedDict[Shapes, Slot] = collections.OrderedDict()
        self._scratch = cuda.DeviceBuffer()
        self._device_outputs = {name: cuda.DeviceBuffer() for name in outputs}
        self.stream: int | None = int(cuda.call("cudaStreamCreateWithFlags", cuda.cudart().cudaStreamNonBlocking))
        self._done = cuda.call("cudaEventCreateWithFlags", cuda.cudart().cudaEventDisableTiming)

    def on_host(self, inputs: Mapping[str, Any], wanted: list[str]) -> dict[str, np.ndarray]:
        """Host arrays in, new NumPy arrays out, complete on return."""
        arrays = {name: host_array(value, name) for name, value in inputs.items()}
        shapes: Shapes = tuple((name, array.shape) for name, array in arrays.items())
        # Work on a caller's stream may still use the context and its scratch memory.
        cuda.call("cudaStreamWaitEvent", self.stream, self._done, 0)
        slot = self._slots.get(shapes)
        fresh = slot is None
        if fresh:
            slot = self._new_slot(shapes)
        self._slots.move_to_end(shapes)
        for name, array in arrays.items():
            np.copyto(slot.host[name], array)
        if slot.graph is not None:
            cuda.call("cudaGraphLaunch", slot.graph, self.stream)
        else:
            if not fresh:
                self._set_shapes(shapes)
            self._bind(slot)
            self._enqueue(slot)
        cuda.call("cudaEventRecord", self._done, self.stream)
        cuda.call("cudaStreamSynchronize", self.stream)
        results = {name: slot.host[name].copy() for name in wanted}
        if slot.graph is None and self.capture:
            self._capture(slot)  # the context has run this shape just now, which capture asks for
        return results

    def on_device(
        self, views: Mapping[str, Any], inputs: Mapping[str, Any], wanted: list[str], stream: int | None
    ) -> dict[str, cuda.DeviceArray]:
        """Device memory in, used where it is; new device arrays out, ready on `stream`, or complete without one."""
        lane = self.stream if stream is None else stream
        cuda.call("cudaStreamWaitEvent", lane, self._done, 0)
        shapes: Shapes = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        self._set_shapes(shapes)
        held = []
        for name, shape in shapes:
            if views[name]:
                pointer = views[name].pointer
            else:
                host = host_array(inputs[name], name)
                held.append(cuda.DeviceArray.empty(shape, self._inputs[name], lane))
                pointer = held[-1].pointer
                self._copy(pointer, host.ctypes.data, host.nbytes, "HostToDevice", lane)
            self._expect(self.context.set_tensor_address(name, pointer), f"refuses memory for {name}")
        results = {}
        for name, (shape, dtype) in self._output_specs().items():
            if name in wanted:
                results[name] = cuda.DeviceArray.empty(shape, dtype, stream)
                pointer = results[name].pointer
            else:
                pointer = self._reserve(self._device_outputs[name], math.prod(shape) * dtype.itemsize)
            self._expect(self.context.set_tensor_address(name, pointer), f"refuses memory for {name}")
        self._reserve_scratch()
        self._expect(self.context.execute_async_v3(lane), f"could not run {dict(shapes)}")
        cuda.call("cudaEventRecord", self._done, lane)
        if stream is None or held:
            cuda.call("cudaStreamSynchronize", lane)
        return {name: results[name] for name in wanted}

    def close(self) -> None:
        """Release memory, graphs and stream, after the work that uses them."""
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

    def _new_slot(self, shapes: Shapes) -> Slot:
        self._set_shapes(shapes)
        while len(self._slots) >= SHAPES_KEPT:
            cuda.call("cudaStreamSynchronize", self.stream)
            self._slots.popitem(last=False)[1].free()
        specs = {name: (shape, self._inputs[name]) for name, shape in shapes} | self._output_specs()
        slot = self._slots[shapes] = Slot(specs)
        return slot

    def _set_shapes(self, shapes: Shapes) -> None:
        for name, shape in shapes:
            self._expect(self.context.set_input_shape(name, shape), f"refuses {name} of shape {list(shape)}")

    def _output_specs(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of the outputs, for the input shapes set last."""
        specs = {}
        for name, dtype in self._outputs.items():
            shape = tuple(self.context.get_tensor_shape(name))
            self._expect(len(shape) > 0 and min(shape) > 0, f"gives no shape for {name}: {list(shape)}")
            specs[name] = (shape, dtype)
        return specs

    def _bind(self, slot: Slot) -> None:
        for name, buffer in slot.device.items():
            self._expect(self.context.set_tensor_address(name, buffer.pointer), f"refuses memory for {name}")
        self._reserve_scratch()

    def _reserve_scratch(self) -> None:
        """Scratch memory for the shapes set last. Captured graphs hold its address: they go when it moves."""
        before = self._scratch.pointer
        pointer = self._reserve(self._scratch, self.context.update_device_memory_size_for_shapes())
        if pointer != before:
            for slot in self._slots.values():
                slot.drop_graph()
        self.context.set_device_memory(pointer, self._scratch.nbytes)

    def _reserve(self, buffer: cuda.DeviceBuffer, nbytes: int) -> int:
        if nbytes > buffer.nbytes:  # it is about to be freed
            cuda.call("cudaEventSynchronize", self._done)
        return buffer.reserve(nbytes)

    def _enqueue(self, slot: Slot) -> None:
        """Upload, network, download, on the lane's stream."""
        for name in self._inputs:
            array = slot.host[name]
            self._copy(slot.device[name].pointer, slot.pinned[name].pointer, array.nbytes, "HostToDevice")
        self._expect(self.context.execute_async_v3(self.stream), "could not run")
        for name in self._outputs:
            array = slot.host[name]
            self._copy(slot.pinned[name].pointer, slot.device[name].pointer, array.nbytes, "DeviceToHost")

    def _copy(self, to: int, source: int, nbytes: int, kind: str, stream: int | None = None) -> None:
        kind = getattr(cuda.cudart().cudaMemcpyKind, f"cudaMemcpy{kind}")
        cuda.call("cudaMemcpyAsync", to, source, nbytes, kind, self.stream if stream is None else stream)

    def _capture(self, slot: Slot) -> None:
        """Keep what `_enqueue` does as one CUDA graph; where that is not possible, go on without any."""
        mode = cuda.cudart().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        graph = None
        try:
            cuda.call("cudaStreamBeginCapture", self.stream, mode)
            try:
                self._enqueue(slot)
            finally:
                graph = cuda.call("cudaStreamEndCapture", self.stream)
            slot.graph = cuda.call("cudaGraphInstantiate", graph, 0)
        except BackendError:
            self.capture = False
        finally:
            if graph is not None:
                with contextlib.suppress(BackendError):
                    cuda.call("cudaGraphDestroy", graph)
