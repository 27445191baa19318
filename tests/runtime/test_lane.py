"""An engine's memory and CUDA graphs, call by call: what is allocated when, kept, dropped and given back.

A stand-in for the CUDA runtime and for an execution context keeps the books in host memory, so that this runs without
a GPU. It shows that the calls are made in a right order; that a device does the same, tests marked gpu show.
"""

from __future__ import annotations

import collections
import ctypes
import queue
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dpt_deploy.contract import Contract
from dpt_deploy.errors import BackendError, ContractError
from dpt_deploy.runtime import cuda
from dpt_deploy.runtime.lane import SHAPES_KEPT, Lane
from dpt_deploy.runtime.session import Session
from dpt_deploy.runtime.tensorrt import Profile, TensorRTSession


class StandIn:
    """The CUDA runtime as far as a lane uses it: memory is the host's, work is done at once unless captured."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.counts: collections.Counter[str] = collections.Counter()
        self.capturing: list[Callable[[], None]] | None = None
        self.alive: set[Any] = set()
        self.can_capture = True
        self.full = False
        self.recorded: dict[int, int] = {}
        self.order: list[tuple[Any, ...]] = []
        """What waited for what, and what memory came and went in the order of a stream."""
        self._next = 1000

    def cudart(self) -> Any:
        kinds = types.SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
        modes = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
        pools = types.SimpleNamespace(cudaMemPoolAttrReleaseThreshold=4)
        return types.SimpleNamespace(cudaMemcpyKind=kinds, cudaStreamCaptureMode=modes, cudaStreamNonBlocking=1,
                                     cudaMemPoolAttr=pools,
                                     cudaEventDisableTiming=2, cudaHostAllocDefault=0)

    def call(self, function: str, *arguments: Any) -> Any:
        self.counts[function] += 1
        action = getattr(self, function, None)
        return action(*arguments) if action else None

    def enqueue(self, work: Callable[[], None]) -> None:
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    def _handle(self) -> int:
        self._next += 1
        self.alive.add(self._next)
        return self._next

    def cudaMalloc(self, nbytes: int) -> int:
        assert self.capturing is None, "allocated within a capture"
        if self.full:
            raise BackendError("CUDA: cudaMalloc failed (2): out of memory.")
        block = ctypes.create_string_buffer(max(1, nbytes))
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cudaHostAlloc(self, nbytes: int, flags: int) -> int:
        return self.cudaMalloc(nbytes)

    def cudaFree(self, pointer: int) -> None:
        del self.memory[pointer]

    cudaFreeHost = cudaFree

    def cudaMallocAsync(self, nbytes: int, stream: int) -> int:
        self.order.append(("allocate", stream))
        return self.cudaMalloc(nbytes)

    def cudaFreeAsync(self, pointer: int, stream: int) -> None:
        self.order.append(("free", stream))
        self.cudaFree(pointer)

    def cudaGetDevice(self) -> int:
        return 0

    def cudaEventRecord(self, event: int, stream: int) -> None:
        self.recorded[event] = stream

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> None:
        if event in self.recorded:
            self.order.append((stream, "waits for", self.recorded[event]))

    def cudaDeviceSynchronize(self) -> None:
        self.order.append(("all wait",))

    def cudaMemcpyAsync(self, to: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        self.enqueue(lambda: ctypes.memmove(to, source, nbytes) and None)

    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        return self._handle()

    cudaEventCreateWithFlags = cudaStreamCreateWithFlags

    def cudaStreamDestroy(self, handle: int) -> None:
        self.alive.remove(handle)

    cudaEventDestroy = cudaGraphDestroy = cudaStreamDestroy

    def cudaGraphExecDestroy(self, graph: Any) -> None:
        self.alive.remove(id(graph))

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> None:
        self.capturing = []

    def cudaStreamEndCapture(self, stream: int) -> Any:
        work, self.capturing = self.capturing, None
        self.work = work
        if not self.can_capture:
            raise BackendError("CUDA: cudaStreamEndCapture failed")
        return self._handle()

    def cudaGraphInstantiate(self, graph: int, flags: int) -> Any:
        captured = tuple(self.work)
        self.alive.add(id(captured))
        return captured

    def cudaGraphLaunch(self, graph: Any, stream: int) -> None:
        assert id(graph) in self.alive, "launched a graph that was destroyed"
        for work in graph:
            work()


class Context:
    """depth = the sum of a frame's channels, by way of scratch memory whose size follows the shape."""

    def __init__(self, device: StandIn) -> None:
        self.device, self.addresses, self.scratch = device, {}, (0, 0)
        self.streams: list[int] = []

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.device.counts["set_input_shape"] += 1
        self.shape = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape[:3]

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return int(np.prod(self.shape)) * 4

    def set_device_memory(self, pointer: int, nbytes: int) -> None:
        self.scratch = (pointer, nbytes)

    def execute_async_v3(self, stream: int) -> bool:
        shape, addresses, (scratch, nbytes) = self.shape, dict(self.addresses), self.scratch
        self.streams.append(stream)

        def work() -> None:
            assert scratch in self.device.memory and nbytes >= np.prod(shape) * 4, "scratch memory is gone or too small"
            frame = _array(addresses["frame"], shape, np.uint8)
            _array(scratch, shape, np.float32)[...] = frame
            depth = _array(scratch, shape, np.float32).sum(axis=-1)
            for name, sign in (("depth", 1), ("alpha", -1)):
                if name in addresses:
                    _array(addresses[name], shape[:3], np.float32)[...] = sign * depth

        self.device.enqueue(work)
        return True


def _array(pointer: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(pointer), dtype).reshape(shape)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(cuda, "call", stand_in.call)
    monkeypatch.setattr(cuda, "cudart", stand_in.cudart)
    return stand_in


def lane(device: StandIn, capture: bool = True, outputs: tuple[str, ...] = ("depth",)) -> Lane:
    def expect(succeeded: bool, what: str) -> None:
        if not succeeded:
            raise BackendError(what)

    return Lane(Context(device), {"frame": "uint8"}, dict.fromkeys(outputs, "float32"), expect, capture)


def frame(h: int = 6, w: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, h, w, 3), dtype=np.uint8)


def check(one: Lane, image: np.ndarray) -> None:
    result = one.on_host({"frame": image}, ["depth"])["depth"]
    np.testing.assert_array_equal(result, image.sum(axis=-1, dtype=np.float32))
    assert result.flags.owndata, "the next call would write into it"


def test_after_the_first_call_nothing_is_allocated(device: StandIn) -> None:
    one = lane(device)
    check(one, frame())
    before = device.counts.copy()
    for seed in range(20):
        check(one, frame(seed=seed))
    made = device.counts - before
    for function in ("cudaMalloc", "cudaHostAlloc", "cudaStreamBeginCapture", "cudaEventCreateWithFlags"):
        assert made[function] == 0, function
    assert made["cudaGraphLaunch"] == 20
    assert made["cudaMemcpyAsync"] == 0, "copies are part of the graph"
    one.close()


def test_shapes_take_turns_without_mixing(device: StandIn) -> None:
    one = lane(device)
    sizes = [(6, 8), (4, 4), (10, 12)]
    for turn in range(4):
        for h, w in sizes:
            check(one, frame(h, w, turn))
    one.close()


def test_a_moved_scratch_memory_takes_the_graphs_along(device: StandIn) -> None:
    """A graph launched with the old address would write into memory that is not its own."""
    one = lane(device)
    check(one, frame(4, 4))
    check(one, frame(4, 4))
    check(one, frame(40, 40))
    launched = device.counts["cudaGraphLaunch"]
    check(one, frame(4, 4, 1))
    assert device.counts["cudaGraphLaunch"] == launched
    check(one, frame(4, 4, 2))
    assert device.counts["cudaGraphLaunch"] == launched + 1
    one.close()


def test_the_number_of_shapes_kept_is_bounded(device: StandIn) -> None:
    one = lane(device)
    check(one, frame(40, 40))
    most = 0
    for h in range(2, 20):
        check(one, frame(h, 8))
        check(one, frame(40, 40))  # used all the time, and so never the one to go
        most = max(most, len(device.memory))
    assert most <= SHAPES_KEPT * 4 + 1
    assert device.counts["cudaStreamBeginCapture"] == 19
    one.close()


def test_closing_gives_everything_back(device: StandIn) -> None:
    one = lane(device)
    for h in range(2, 9):
        check(one, frame(h, 8))
    one.close()
    one.close()
    assert not device.memory and not device.alive


def test_where_capture_fails_calls_go_on_without(device: StandIn) -> None:
    device.can_capture = False
    one = lane(device)
    for seed in range(3):
        check(one, frame(seed=seed))
    assert device.counts["cudaStreamBeginCapture"] == 1 and not device.counts["cudaGraphLaunch"]
    one.close()


def test_a_runtime_that_captures_by_itself_is_left_to_it(device: StandIn) -> None:
    one = lane(device, capture=False)
    for seed in range(3):
        check(one, frame(seed=seed))
    assert not device.counts["cudaStreamBeginCapture"]
    one.close()


def test_without_a_graph_a_shape_is_bound_once(device: StandIn) -> None:
    """TensorRT-RTX captures anew what was bound anew."""
    one = lane(device, capture=False)
    check(one, frame())
    before = device.counts["set_input_shape"]
    check(one, frame(seed=1))
    assert device.counts["set_input_shape"] == before
    check(one, frame(4, 4))
    check(one, frame(seed=2))
    one.close()


def test_where_scratch_memory_cannot_grow_no_graph_stays_on_the_old_one(device: StandIn) -> None:
    one = lane(device)
    check(one, frame(4, 4))
    slot = one._slot({"frame": frame(40, 40)}, ["depth"])
    device.full = True
    with pytest.raises(BackendError, match="out of memory"):
        one._bind(slot)
    device.full = False
    launched = device.counts["cudaGraphLaunch"]
    check(one, frame(4, 4, 1))
    assert device.counts["cudaGraphLaunch"] == launched
    check(one, frame(40, 40))
    one.close()
    assert not device.memory


def test_only_the_maps_asked_for_come_to_the_host(device: StandIn) -> None:
    one = lane(device, outputs=("depth", "alpha"))
    image = frame()
    for _ in range(2):
        have = one.on_host({"frame": image}, ["alpha"])
        np.testing.assert_array_equal(have["alpha"], -image.sum(axis=-1, dtype="f4"))
        assert list(have) == ["alpha"] and device.counts["cudaHostAlloc"] == 2, "the frame and one map"
    check(one, image)
    one.close()
    assert not device.memory


def test_any_strides_are_taken(device: StandIn) -> None:
    one = lane(device)
    check(one, frame(12, 16)[:, ::2, ::-1])
    one.close()


def test_the_steps_of_a_call_are_told_apart(device: StandIn) -> None:
    one, image = lane(device), frame()
    steps = one.steps({"frame": image}, ["depth"])
    for name, copies in (("h2d", 1), ("engine", 1), ("d2h", 2)):
        steps[name]()
        assert device.counts["cudaMemcpyAsync"] == copies, name
    (slot,) = one._slots.values()
    np.testing.assert_array_equal(slot.host["depth"], image.sum(axis=-1, dtype="f4"))
    one.close()


@pytest.mark.parametrize("stream", [None, 0, 1])
def test_a_default_stream_is_waited_for_and_not_computed_on(device: StandIn, stream: int | None) -> None:
    """TensorRT would synchronise the whole device around it."""
    one, image = lane(device), frame()
    own, view = one.stream, cuda.DeviceView(image.ctypes.data, image)
    result = one.on_device({"frame": view}, (("frame", image.shape),), ["depth"], stream)["depth"]
    assert one.context.streams == [own]
    back = [] if stream is None else [(stream, "waits for", own)]
    assert device.order == [("allocate", 1), (own, "waits for", stream or 1), *back]
    assert device.counts["cudaStreamSynchronize"] == (stream is None)
    one.close()
    del result
    assert device.order[-1] == ("free", 1), "the lane's stream is gone by now"
    assert not device.memory


@pytest.mark.parametrize(("reader", "before"), [(7, []), (0, [(7, "waits for", 1)]), (9, [("all wait",)])])
def test_memory_goes_when_its_readers_are_done(device: StandIn, reader: int, before: list[Any]) -> None:
    array = cuda.DeviceArray.empty((2, 3), "float32", 7)
    array._shared_with(reader or cuda.LEGACY_STREAM)
    device.order.clear()
    del array
    assert device.order == [*before, ("free", 7)] and not device.memory


def test_device_arrays_are_used_in_place(device: StandIn) -> None:
    one = lane(device)
    image = frame()
    view = cuda.DeviceView(image.ctypes.data, image)
    copies = device.counts["cudaMemcpyAsync"]
    result = one.on_device({"frame": view}, (("frame", image.shape),), ["depth"], stream=7)["depth"]
    assert one.context.streams == [7] and device.order == [("allocate", 7)], "nothing but the caller's stream"
    assert device.counts["cudaMemcpyAsync"] == copies and result.stream == 7
    np.testing.assert_array_equal(_array(result.pointer, result.shape, result.dtype), image.sum(axis=-1, dtype="f4"))
    check(one, frame(4, 4))  # and the host's way works after it
    del result
    one.close()
    assert not device.memory


def session_on(device: StandIn) -> TensorRTSession:
    """A TensorRT session with two lanes, and without an engine."""
    session = object.__new__(TensorRTSession)
    Session.__init__(session, Contract((32, 32), heads=("depth",)), "frame")
    session.backend, session.file, session.profile, session._rebuild = "tensorrt", "a.engine", Profile("a", {}), ""
    session._closing, session._device, session._cache = threading.Lock(), 0, None
    session._captures_itself, session._logger = False, types.SimpleNamespace(words=[], said=lambda: "")
    session._free, session._all = queue.LifoQueue(), [lane(device) for _ in range(2)]
    for one in session._all:
        session._free.put(one)
    return session


def test_one_thread_uses_one_lane(device: StandIn) -> None:
    """Each lane allocates and captures for itself: taking turns would do both twice."""
    session = session_on(device)
    for seed in range(4):
        image = frame(seed=seed)
        have = session.run({"frame": image})["depth"]
        np.testing.assert_array_equal(have, image.sum(axis=-1, dtype="f4"))
    assert sorted(len(one._slots) for one in session._all) == [0, 1]
    assert device.counts["cudaStreamBeginCapture"] == 1 and session.note == "with CUDA graphs"
    session.close()
    assert not device.memory and not device.alive


def test_without_graphs_the_session_says_why(device: StandIn) -> None:
    device.can_capture = False
    with session_on(device) as session:
        session.run({"frame": frame()})
        assert session.note == "without CUDA graphs: CUDA: cudaStreamEndCapture failed"


def test_closing_gives_the_lanes_back_whatever_the_cache_does(device: StandIn) -> None:
    session = session_on(device)
    session.run({"frame": frame()})

    class Broken:
        def serialize(self) -> bytes:
            raise ValueError("no")

    session._cache = Broken()
    with pytest.raises(ValueError, match="no"):
        session.close()
    assert not device.memory and not device.alive


def test_an_array_on_another_gpu_is_refused(device: StandIn) -> None:
    class Elsewhere:
        shape, dtype = (1, 6, 8, 3), np.dtype("uint8")

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 1

    with session_on(device) as session, pytest.raises(ContractError, match=r"GPU 0, where the session.*on GPU 1"):
        session.run({"frame": Elsewhere()})
