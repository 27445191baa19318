"""A stream with its execution contexts and memory: what calls of an engine need, kept from call to call.

Per input shape and set of maps asked for, a worker keeps an execution context, device buffers, pinned host buffers and,
with TensorRT, a captured CUDA graph of upload, network and download. A context never changes its shape while a graph of
it is kept; all contexts share one scratch memory. After the first such call nothing more is allocated on the device or
pinned for it. The number kept is bounded; the least recently used one goes.
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
"""Shapes of the inputs, and the outputs that the host wants."""


class Slot:
    """A context and memory for one key: of every tensor on the device; of inputs and wanted outputs on the host."""

    def __init__(
        self, context: Any, specs: Mapping[str, tuple[tuple[int, ...], np.dtype]], on_host: Container[str]
    ) -> None:
        """`context` has the shapes of the key."""
        self.context = context
        self.bound = False
        """Whether the context has its addresses."""
        self.device: dict[str, cuda.DeviceBuffer] = {}
        self.pinned: dict[str, cuda.PinnedBuffer] = {}
        self.host: dict[str, np.ndarray] = {}
        self.graph: Any = None
        """An instantiated CUDA graph, or None."""
        for name, (shape, dtype) in specs.items():
            nbytes = math.prod(shape) * dtype.itemsize
            self.device[name] = cuda.DeviceBuffer()
            self.device[name].reserve(nbytes)
            if name in on_host:
                self.pinned[name] = cuda.PinnedBuffer(nbytes)
                self.host[name] = self.pinned[name].array(shape, dtype)

    def unbind(self) -> None:
        """Forget the captured graph and the addresses in it; the next call binds and captures anew."""
        self.bound = False
        if self.graph is not None:
            graph, self.graph = self.graph, None
            cuda.call("cudaGraphExecDestroy", graph)

    def free(self) -> None:
        """Give everything back."""
        self.unbind()
        self.context = None
        self.host.clear()
        for buffer in (*self.device.values(), *self.pinned.values()):
            buffer.free()


class StreamWorker:
    """A stream and what runs on it, used by one call at a time."""

    def __init__(
        self, create: Callable[[], Any], inputs: Mapping[str, str], outputs: Mapping[str, str],
        expect: Callable[[bool, str], None], capture: bool,
    ) -> None:
        """`create` makes an execution context; `inputs` and `outputs` are dtypes by name.

        `expect(succeeded, what)` raises in the builder's words.

        `capture`: keep a CUDA graph per shape. False where the builder's runtime captures by itself.
        """
        self.context = create()
        """The context of calls on device memory, whose shapes and addresses change from call to call."""
        self.capture = capture
        self.why_not = ""
        """Why there is no CUDA graph, in CUDA's or the builder's words, where capture was tried and failed."""
        self._create = create
        self._expect = expect
        self._inputs = {name: np.dtype(dtype) for name, dtype in inputs.items()}
        self._outputs = {name: np.dtype(dtype) for name, dtype in outputs.items()}
        self._slots: collections.OrderedDict[Key, Slot] = collections.OrderedDict()
        self._scratch = cuda.DeviceBuffer()
        self._device_outputs = {name: cuda.DeviceBuffer() for name in outputs}
        self.stream: int | None = int(cuda.call("cudaStreamCreateWithFlags", cuda.cudart().cudaStreamNonBlocking))
        self._done = cuda.call("cudaEventCreateWithFlags", cuda.cudart().cudaEventDisableTiming)

    def on_host(self, inputs: Mapping[str, np.ndarray], wanted: list[str]) -> dict[str, np.ndarray]:
        """Host arrays in, new NumPy arrays out, complete on return."""
        # Work on a caller's stream may still use the scratch memory.
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
            self._capture(slot)  # the context has run this shape just now, which capture asks for
        return results

    def steps(self, inputs: Mapping[str, np.ndarray], wanted: list[str]) -> dict[str, Callable[[], None]]:
        """What `on_host` puts on the worker's stream, step by step, to be timed apart: h2d, engine, d2h."""
        slot = self._slot(inputs, wanted)
        self._bind(slot)
        steps = {"h2d": self._upload, "engine": self._compute, "d2h": self._download}
        return {name: functools.partial(step, slot) for name, step in steps.items()}

    def on_device(
        self, views: Mapping[str, cuda.DeviceView], shapes: Shapes, wanted: list[str], stream: int | None
    ) -> dict[str, cuda.DeviceArray]:
        """Device memory in, used where it is; new device arrays out, ready on `stream`, or complete without one."""
        default = stream is None or stream in cuda.DEFAULT_STREAMS
        target = self.stream if default else stream  # TensorRT would synchronise the device around a default stream
        cuda.call("cudaStreamWaitEvent", target, self._done, 0)
        self._set_shapes(self.context, shapes)
        for name, view in views.items():
            self._expect(self.context.set_tensor_address(name, view.pointer), f"refuses memory for {name}")
        results = {}
        for name, (shape, dtype) in self._output_specs(self.context).items():
            if name in wanted:
                results[name] = cuda.DeviceArray.empty(shape, dtype, stream)
                pointer = results[name].pointer
            else:
                pointer = self._reserve(self._device_outputs[name], math.prod(shape) * dtype.itemsize)
            self._expect(self.context.set_tensor_address(name, pointer), f"refuses memory for {name}")
        self._reserve_scratch(self.context)
        if default:
            # For the caller's inputs, and the memory of the outputs.
            cuda.make_wait(target, stream or cuda.LEGACY_STREAM)
        self._expect(self.context.execute_async_v3(target), f"could not run {dict(shapes)}")
        cuda.call("cudaEventRecord", self._done, target)
        if stream is None:
            cuda.call("cudaStreamSynchronize", target)
        elif default:
            cuda.make_wait(stream, target)
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

    def _slot(self, inputs: Mapping[str, np.ndarray], wanted: list[str]) -> Slot:
        """The memory for this call, with the inputs in it; the one used longest ago makes room for a new one."""
        shapes: Shapes = tuple((name, inputs[name].shape) for name in self._inputs)
        key = (shapes, tuple(name for name in self._outputs if name in wanted))
        if key not in self._slots:
            context = self._create()
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
            self._expect(context.set_input_shape(name, shape), f"refuses {name} of shape {list(shape)}")

    def _output_specs(self, context: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of the outputs, for the input shapes set last."""
        specs = {}
        for name, dtype in self._outputs.items():
            shape = tuple(context.get_tensor_shape(name))
            self._expect(len(shape) > 0 and min(shape) > 0, f"gives no shape for {name}: {list(shape)}")
            specs[name] = (shape, dtype)
        return specs

    def _bind(self, slot: Slot) -> None:
        if slot.bound:
            return
        for name, buffer in slot.device.items():
            self._expect(slot.context.set_tensor_address(name, buffer.pointer), f"refuses memory for {name}")
        self._reserve_scratch(slot.context)
        slot.bound = True

    def _reserve_scratch(self, context: Any) -> None:
        """Scratch memory for the context's shapes. Captured graphs hold its address: they go before it moves."""
        nbytes = context.update_device_memory_size_for_shapes()
        if nbytes > self._scratch.nbytes:
            cuda.call("cudaEventSynchronize", self._done)
            for slot in self._slots.values():
                slot.unbind()
        context.set_device_memory(self._scratch.reserve(nbytes), self._scratch.nbytes)

    def _reserve(self, buffer: cuda.DeviceBuffer, nbytes: int) -> int:
        if nbytes > buffer.nbytes:  # it is about to be freed
            cuda.call("cudaEventSynchronize", self._done)
        return buffer.reserve(nbytes)

    def _enqueue(self, slot: Slot) -> None:
        """Upload, network, download, on the worker's stream."""
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
        """Keep what `_enqueue` does as one CUDA graph; where that is not possible, go on without any."""
        try:
            slot.graph = cuda.capture(self.stream, functools.partial(self._enqueue, slot))
        except BackendError as error:
            self.capture, self.why_not = False, str(error)
