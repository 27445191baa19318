"""An engine's memory and CUDA graphs, call by call: what is allocated when, kept, dropped and given back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dpt_deploy.backends import cuda
from dpt_deploy.backends.stream_worker import SLOTS_KEPT, StreamWorker
from dpt_deploy.core.errors import BackendError, ContractError
from tests.backends.stand_in import StandIn, array_at, device, session_on, worker

__all__ = ["device"]


def frame(h: int = 6, w: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, h, w, 3), dtype=np.uint8)


def check(one: StreamWorker, image: np.ndarray) -> None:
    result = one.run_on_host({"frame": image}, ["depth"])["depth"]
    np.testing.assert_array_equal(result, image.sum(axis=-1, dtype=np.float32))
    assert result.flags.owndata, "the next call would write into it"


ALLOCATIONS = ("create_context", "cudaMalloc", "cudaHostAlloc", "cudaStreamBeginCapture", "cudaEventCreateWithFlags")


def made(device: StandIn, before: Any) -> dict[str, int]:
    """How often memory and the like was created since `before`, a copy of the counts."""
    return {function: device.counts[function] - before[function] for function in ALLOCATIONS}


def test_after_the_second_call_nothing_is_allocated(device: StandIn) -> None:
    one = worker(device)
    check(one, frame())
    check(one, frame())
    before = device.counts.copy()
    for seed in range(20):
        check(one, frame(seed=seed))
    assert not any(made(device, before).values())
    assert device.counts["cudaGraphLaunch"] == 20
    assert device.counts["cudaMemcpyAsync"] == before["cudaMemcpyAsync"], "copies are part of the graph"
    one.close()


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("step", [1, -1])
def test_fifty_sizes_share_one_context(device: StandIn, capture: bool, step: int) -> None:
    one = worker(device, capture)
    for i in range(50)[::step]:
        image = frame(10 + i, 12 + i)
        check(one, image)
        fresh = StandIn()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cuda, "call", fresh.call)
            other = worker(fresh, capture)
            check(other, image)
            other.close()
    assert device.counts["create_context"] == 1
    growths = 1 + int(np.ceil(np.log(59 * 61 / 120) / np.log(1.5))) if step > 0 else 1
    assert device.counts["cudaHostAlloc"] <= 2 * growths, "of frame and depth"
    assert device.counts["cudaMalloc"] - device.counts["cudaHostAlloc"] <= 3 * growths, "and of the scratch memory"
    assert not device.counts["cudaStreamBeginCapture"]
    one.close()
    assert not device.memory and not device.alive


def test_shapes_take_turns_without_mixing(device: StandIn) -> None:
    one = worker(device)
    sizes = [(6, 8), (4, 4), (10, 12)]
    for turn in range(4):
        for h, w in sizes:
            check(one, frame(h, w, turn))
            image = frame(5, 5, turn)
            view = cuda.DeviceView(image.ctypes.data, image)
            one.run_on_device({"frame": view}, (("frame", image.shape),), ["depth"], 7)
    assert device.counts["cudaGraphLaunch"] == 6, "captured in the second turn, launched in the third and fourth"
    one.close()


def test_sizes_in_turn_are_captured_once(device: StandIn) -> None:
    one = worker(device)
    sizes = [(4 + 3 * i, 5 + 2 * i) for i in range(SLOTS_KEPT)]
    for turn in range(2):
        for h, w in sizes:
            check(one, frame(h, w, turn))
    assert device.counts["cudaStreamBeginCapture"] == len(sizes)
    assert device.counts["create_context"] == len(sizes) + 1
    before = device.counts.copy()
    for turn in range(10):
        for h, w in sizes:
            check(one, frame(h, w, turn))
    assert not any(made(device, before).values())
    assert device.counts["cudaGraphLaunch"] == 10 * len(sizes)
    one.close()
    assert not device.memory and not device.alive


def test_more_sizes_in_turn_than_slots_do_not_evict_each_other(device: StandIn) -> None:
    one = worker(device)
    sizes = [(4 + i, 8) for i in range(SLOTS_KEPT + 3)]
    for turn in range(2):
        for h, w in sizes:
            check(one, frame(h, w, turn))
    before = device.counts.copy()
    for turn in range(10):
        for h, w in sizes:
            check(one, frame(h, w, turn))
    assert not any(made(device, before).values())
    assert device.counts["cudaGraphLaunch"] == 10 * SLOTS_KEPT
    one.close()


def test_new_sizes_take_over_slots_with_their_contexts(device: StandIn) -> None:
    one = worker(device)
    for h in range(40, 40 + SLOTS_KEPT):
        check(one, frame(h, 8))
        check(one, frame(h, 8))
    before = device.counts.copy()
    for h in range(4, 4 + SLOTS_KEPT):
        for seed in range(4):
            check(one, frame(h, 8, seed))
    assert made(device, before) == dict.fromkeys(ALLOCATIONS, 0) | {"cudaStreamBeginCapture": SLOTS_KEPT}
    assert device.counts["cudaGraphLaunch"] == 2 * SLOTS_KEPT
    one.close()
    assert not device.memory and not device.alive


def test_without_memory_for_a_slot_calls_go_on_in_the_shared_one(device: StandIn) -> None:
    one = worker(device)
    for h in (4, 6, 4):
        check(one, frame(h, 8))
    device.full = True
    for seed in range(3):
        check(one, frame(6, 8, seed))
        check(one, frame(4, 8, seed))
    assert device.counts["cudaGraphLaunch"] == 3 and not one.capture_error
    one.close()
    assert not device.memory


def test_a_buffer_grows_by_half_if_there_is_room(device: StandIn) -> None:
    buffer = cuda.DeviceBuffer()
    buffer.reserve(100)
    buffer.reserve(101)
    assert buffer.nbytes == 150
    device.most = 160
    buffer.reserve(155)
    assert buffer.nbytes == 155
    device.most = None
    buffer.reserve(400)
    assert buffer.nbytes == 400
    buffer.free()
    assert not device.memory


def test_a_moved_scratch_memory_takes_the_graphs_along(device: StandIn) -> None:
    """A graph launched with the old address would write into memory that is not its own."""
    one = worker(device)
    for _ in range(3):
        check(one, frame(4, 4))
    check(one, frame(40, 40))
    launched = device.counts["cudaGraphLaunch"]
    check(one, frame(4, 4, 1))
    assert device.counts["cudaGraphLaunch"] == launched
    check(one, frame(4, 4, 2))
    assert device.counts["cudaGraphLaunch"] == launched + 1
    one.close()


def test_the_number_of_slots_is_bounded(device: StandIn) -> None:
    one = worker(device)
    check(one, frame(40, 40))
    most = 0
    for h in range(2, 20):
        check(one, frame(h, 8))
        check(one, frame(h, 8))
        check(one, frame(40, 40))  # used all the time, and so never the one to go
        most = max(most, len(device.memory))
    assert most <= (SLOTS_KEPT + 1) * 4 + 1
    assert device.counts["create_context"] == SLOTS_KEPT + 1
    assert device.counts["cudaStreamBeginCapture"] == 19
    one.close()


def test_closing_gives_everything_back(device: StandIn) -> None:
    one = worker(device)
    for h in range(2, 9):
        check(one, frame(h, 8))
        check(one, frame(h % 4 + 2, 8))
    assert device.alive
    one.close()
    one.close()
    assert not device.memory and not device.alive


def test_where_capture_fails_calls_go_on_without(device: StandIn) -> None:
    device.can_capture = False
    one = worker(device)
    for seed in range(3):
        check(one, frame(seed=seed))
    assert device.counts["cudaStreamBeginCapture"] == 1 and not device.counts["cudaGraphLaunch"]
    one.close()


def test_a_capture_that_breaks_off_leaves_nothing_behind(device: StandIn) -> None:
    def fail() -> None:
        raise BackendError("a.engine could not run")

    for device.can_capture in (True, False):  # False: CUDA invalidated the capture as well
        with pytest.raises(BackendError, match="could not run"):
            cuda.capture(1, fail)
        assert not device.alive and device.capturing is None


def test_a_runtime_that_captures_by_itself_is_left_to_it(device: StandIn) -> None:
    one = worker(device, capture=False)
    for seed in range(3):
        check(one, frame(seed=seed))
    assert not device.counts["cudaStreamBeginCapture"]
    one.close()


def test_without_a_graph_a_shape_is_bound_once(device: StandIn) -> None:
    """TensorRT-RTX captures anew what was bound anew."""
    one = worker(device, capture=False)
    check(one, frame())
    check(one, frame())
    before = device.counts["set_input_shape"]
    check(one, frame(seed=1))
    check(one, frame(seed=2))
    assert device.counts["set_input_shape"] == before
    check(one, frame(4, 4))
    before = device.counts["set_input_shape"]
    check(one, frame(seed=3))
    assert device.counts["set_input_shape"] == before
    one.close()


def test_where_scratch_memory_cannot_grow_no_graph_stays_on_the_old_one(device: StandIn) -> None:
    one = worker(device)
    for _ in range(3):
        check(one, frame(4, 4))
    slot = one._slot(((("frame", (1, 40, 40, 3)),), ("depth",)))
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
    one = worker(device, outputs=("depth", "alpha"))
    image = frame()
    for _ in range(2):
        have = one.run_on_host({"frame": image}, ["alpha"])
        np.testing.assert_array_equal(have["alpha"], -image.sum(axis=-1, dtype="f4"))
        assert list(have) == ["alpha"]
    assert device.counts["cudaHostAlloc"] == 2 * 2, "the frame and one map, in the shared slot and in one of its own"
    check(one, image)
    one.close()
    assert not device.memory


def test_any_strides_are_taken(device: StandIn) -> None:
    one = worker(device)
    check(one, frame(12, 16)[:, ::2, ::-1])
    one.close()


def test_the_steps_of_a_call_are_told_apart(device: StandIn) -> None:
    one, image = worker(device), frame()
    steps = one.steps({"frame": image}, ["depth"])
    for name, copies in (("h2d", 1), ("engine", 1), ("d2h", 2)):
        steps[name]()
        assert device.counts["cudaMemcpyAsync"] == copies, name
    np.testing.assert_array_equal(one._shared.host["depth"], image.sum(axis=-1, dtype="f4"))
    one.close()


@pytest.mark.parametrize("stream", [None, 0, 1])
def test_a_default_stream_is_waited_for_and_not_computed_on(device: StandIn, stream: int | None) -> None:
    """TensorRT would synchronise the whole device around it."""
    one, image = worker(device), frame()
    own, view = one.stream, cuda.DeviceView(image.ctypes.data, image)
    result = one.run_on_device({"frame": view}, (("frame", image.shape),), ["depth"], stream)["depth"]
    assert one._shared.context.streams == [own]
    back = [] if stream is None else [(stream, "waits for", own)]
    assert device.order == [("allocate", 1), (own, "waits for", stream or 1), *back]
    assert device.counts["cudaStreamSynchronize"] == (stream is None)
    one.close()
    del result
    assert device.order[-1] == ("free", 1), "the worker's stream is gone by now"
    assert not device.memory


@pytest.mark.parametrize(("reader", "before"), [(7, []), (0, [(7, "waits for", 1)]), (9, [("all wait",)])])
def test_memory_goes_when_its_readers_are_done(device: StandIn, reader: int, before: list[Any]) -> None:
    array = cuda.DeviceArray.empty((2, 3), "float32", 7)
    array._add_reader(reader or cuda.LEGACY_STREAM)
    device.order.clear()
    del array
    assert device.order == [*before, ("free", 7)] and not device.memory


def test_device_arrays_are_used_in_place(device: StandIn) -> None:
    one = worker(device)
    image = frame()
    view = cuda.DeviceView(image.ctypes.data, image)
    copies = device.counts["cudaMemcpyAsync"]
    result = one.run_on_device({"frame": view}, (("frame", image.shape),), ["depth"], stream=7)["depth"]
    assert one._shared.context.streams == [7] and device.order == [("allocate", 7)], "nothing but the caller's stream"
    assert device.counts["cudaMemcpyAsync"] == copies and result.stream == 7
    np.testing.assert_array_equal(array_at(result.pointer, result.shape, result.dtype), image.sum(axis=-1, dtype="f4"))
    check(one, frame(4, 4))  # and the host's way works after it
    del result
    one.close()
    assert not device.memory


def test_one_thread_uses_one_worker(device: StandIn) -> None:
    """Each worker allocates and captures for itself: taking turns would do both twice."""
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
        for _ in range(2):
            session.run({"frame": frame()})
        assert session.note == "without CUDA graphs: CUDA: cudaStreamEndCapture failed"


def test_what_captures_by_itself_is_asked_whether_it_can(device: StandIn) -> None:
    """Asking for CUDA graphs is not having them."""
    with session_on(device, "tensorrt-rtx") as session:
        assert session.note == "with CUDA graphs of its own if it can capture the first call"
        session.run({"frame": frame()})
        assert session.note == "with CUDA graphs of its own"
        device.can_capture = False
        session.run({"frame": frame(5, 5)})
        assert session.note == "without CUDA graphs: TensorRT-RTX cannot capture this engine's work"


def test_a_scratch_memory_of_zero_is_an_error_of_the_builder(device: StandIn) -> None:
    """0 is what TensorRT returns where it fails; the engine would run on memory that it does not have."""
    with session_on(device) as session:
        session.run({"frame": frame()})
        device.scratch_fails = True
        with pytest.raises(BackendError, match="could not compute the size of its scratch memory"):
            session.run({"frame": frame(5, 5)})
        image = frame(4, 4)
        view = cuda.DeviceView(image.ctypes.data, image)
        with pytest.raises(BackendError, match="scratch memory"):
            session._all[-1].run_on_device({"frame": view}, (("frame", image.shape),), ["depth"], None)
        device.scratch_fails = False
        session.run({"frame": frame(5, 5)})


def test_closing_gives_the_workers_back_whatever_the_cache_does(device: StandIn) -> None:
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
