"""A CUDA stream with the execution contexts and memory of an engine, reused across calls.

A call is identified by its input shapes and requested outputs. The first call of a kind runs in a slot that all kinds
share: one execution context, with device and pinned host buffers that only grow. The second call gives the kind a slot
of its own and, with TensorRT, captures a CUDA graph of upload, network and download in it. Later calls allocate nothing
and launch the graph. A graph contains addresses and a context, so neither changes during its lifetime: only the slot's
own calls use its buffers, and the scratch buffer, which all contexts share, discards the graphs before it moves.

At most `SLOTS_KEPT` kinds have slots. Once they are taken, a kind takes over the least recently used slot, with its
context and buffers, only if its own previous call was later than the last call of that slot. More kinds in turn than
there are slots therefore do not evict each other: those without a slot use the shared one.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ..core.errors import BackendError
from . import cuda

SLOTS_KEPT = 8
KINDS_REMEMBERED = 64

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
Key = tuple[Shapes, tuple[str, ...]]
"""Input shapes and requested outputs: the kind of a call."""


class Slot:
    """A context with a device buffer and a pinned buffer for each tensor."""

    def __init__(self, context: Any, tensors: Iterable[str]) -> None:
        self.context = context
        self.bound = False
        """Whether the tensor addresses of the context are set."""
        self.device = {name: cuda.DeviceBuffer() for name in tensors}
        self.pinned = {name: cuda.PinnedBuffer() for name in self.device}
        self.host: dict[str, np.ndarray] = {}
        """Views of the pinned buffers with the current shapes: inputs and requested outputs."""
        self.graph: Any = None
        """An executable CUDA graph, or None."""

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
        self.capture = capture
        self.capture_error = ""
        """Why no CUDA graphs are used: the error of a capture, or of the memory for the first slot."""
        self.capturable: bool | None = None
        """Whether the builder's runtime can capture the last host call, as its context answers. None before a call, and
        always if `capture`."""
        self._captures_internally = not capture
        self._create_context = create_context
        self._expect = expect
        self._inputs = {name: np.dtype(dtype) for name, dtype in inputs.items()}
        self._outputs = {name: np.dtype(dtype) for name, dtype in outputs.items()}
        self._shared: Slot | None = Slot(create_context(), (*inputs, *outputs))
        """For calls with device arrays, and with host arrays of kinds without a slot. Every call sets it up anew."""
        self._slots: collections.OrderedDict[Key, Slot] = collections.OrderedDict()
        """Least recently used first."""
        self._slots_kept = SLOTS_KEPT
        self._last_calls: collections.OrderedDict[Key, int] = collections.OrderedDict()
        """When a kind was last called, as a count of calls."""
        self._clock = itertools.count(1)
        self._scratch = cuda.DeviceBuffer()
        self.stream: int | None = int(cuda.call("cudaStreamCreateWithFlags", cuda.cudart().cudaStreamNonBlocking))
        self._done = cuda.call("cudaEventCreateWithFlags", cuda.cudart().cudaEventDisableTiming)

    def run_on_host(self, inputs: Mapping[str, np.ndarray], wanted: list[str]) -> dict[str, np.ndarray]:
        """Run on host arrays and return new NumPy arrays that are complete."""
        # Work on a caller's stream may still use the scratch buffer.
        cuda.call("cudaStreamWaitEvent", self.stream, self._done, 0)
        key = self._key(inputs, wanted)
        slot = self._slot(key)
        self._fill(slot, inputs)
        if slot.graph is not None:
            cuda.call("cudaGraphLaunch", slot.graph, self.stream)
        else:
            self._bind(slot)
            self._enqueue(slot)
        cuda.call("cudaEventRecord", self._done, self.stream)
        cuda.call("cudaStreamSynchronize", self.stream)
        results = {name: slot.host[name].copy() for name in wanted}
        if self._captures_internally:
            self.capturable = bool(slot.context.is_stream_capturable(self.stream))
        if slot is not self._shared and slot.graph is None and self.capture:
            self._capture(slot)  # capture requires a preceding run with the same shapes
        self._last_calls[key] = next(self._clock)
        self._last_calls.move_to_end(key)
        if len(self._last_calls) > KINDS_REMEMBERED:
            self._last_calls.popitem(last=False)
        return results

    def steps(self, inputs: Mapping[str, np.ndarray], wanted: list[str]) -> dict[str, Callable[[], None]]:
        """Functions that submit the steps of `run_on_host` one by one, for timing: h2d, engine, d2h."""
        key = self._key(inputs, wanted)
        slot = self._slots.get(key, self._shared)
        if slot is self._shared:
            self._prepare(slot, key)
        self._fill(slot, inputs)
        if not slot.bound:
            self._bind(slot)
            self._compute(slot)  # a caller may capture the steps, which requires a preceding run
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
        context = self._shared.context
        self._set_shapes(context, shapes)
        for name, view in views.items():
            self._expect(context.set_tensor_address(name, view.pointer), f"rejects the memory of {name}")
        results = {}
        for name, (shape, dtype) in self._output_specs(context).items():
            if name in wanted:
                results[name] = cuda.DeviceArray.empty(shape, dtype, stream)
                pointer = results[name].pointer
            else:
                pointer = self._reserve(self._shared.device[name], math.prod(shape) * dtype.itemsize)
            self._expect(context.set_tensor_address(name, pointer), f"rejects the memory of {name}")
        self._reserve_scratch(context)
        if default:
            # The inputs and the memory of the outputs must be ready.
            cuda.wait_stream(target, stream or cuda.LEGACY_STREAM)
        self._expect(context.execute_async_v3(target), f"could not run {dict(shapes)}")
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
        for slot in (self._shared, *self._slots.values()):
            slot.free()
        self._slots.clear()
        self._shared = None
        self._scratch.free()
        cuda.call("cudaEventDestroy", self._done)
        cuda.call("cudaStreamDestroy", self.stream)
        self.stream = self._done = None

    def _key(self, inputs: Mapping[str, np.ndarray], wanted: list[str]) -> Key:
        return (tuple((name, inputs[name].shape) for name in self._inputs),
                tuple(name for name in self._outputs if name in wanted))

    def _slot(self, key: Key) -> Slot:
        """The slot for a call, with the shapes and memory of the call."""
        if key not in self._slots and self._deserves_slot(key):
            self._add_slot(key)
        if key in self._slots:
            self._slots.move_to_end(key)
            return self._slots[key]
        self._prepare(self._shared, key)
        return self._shared

    def _deserves_slot(self, key: Key) -> bool:
        previous = self._last_calls.get(key)
        if previous is None or not self._slots_kept:
            return False
        return len(self._slots) < self._slots_kept or previous > self._last_calls.get(next(iter(self._slots)), 0)

    def _add_slot(self, key: Key) -> None:
        """Give a kind of call a slot, a new one or the least recently used one. Add no more once memory is short."""
        slot = None
        try:
            if len(self._slots) < self._slots_kept:
                slot = Slot(self._create_context(), (*self._inputs, *self._outputs))
            else:
                cuda.call("cudaStreamSynchronize", self.stream)
                slot = self._slots.popitem(last=False)[1]
            self._prepare(slot, key)
        except BackendError as error:
            if slot is not None:
                slot.free()
            self._slots_kept = len(self._slots)
            if not self._slots:
                self.capture_error = self.capture_error or str(error)
        else:
            self._slots[key] = slot

    def _prepare(self, slot: Slot, key: Key) -> None:
        """Set the shapes of a slot's context and reserve memory for them."""
        slot.unbind()
        slot.host.clear()
        shapes, wanted = key
        self._set_shapes(slot.context, shapes)
        specs = {name: (shape, self._inputs[name]) for name, shape in shapes} | self._output_specs(slot.context)
        for name, (shape, dtype) in specs.items():
            nbytes = math.prod(shape) * dtype.itemsize
            self._reserve(slot.device[name], nbytes)
            if name in self._inputs or name in wanted:
                self._reserve(slot.pinned[name], nbytes)
                slot.host[name] = slot.pinned[name].array(shape, dtype)

    def _fill(self, slot: Slot, inputs: Mapping[str, np.ndarray]) -> None:
        for name in self._inputs:
            np.copyto(slot.host[name], inputs[name])

    def _reserve(self, buffer: cuda.DeviceBuffer | cuda.PinnedBuffer, nbytes: int) -> int:
        """Reserve memory in a buffer that no CUDA graph refers to."""
        if nbytes > buffer.nbytes:  # growing frees the memory, which may still be in use
            cuda.call("cudaEventSynchronize", self._done)
        return buffer.reserve(nbytes)

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
        self._expect(nbytes > 0, "could not compute the size of its scratch memory")
        if nbytes > self._scratch.nbytes:
            for slot in self._slots.values():
                slot.unbind()
        context.set_device_memory(self._reserve(self._scratch, nbytes), self._scratch.nbytes)

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
