"""The maps that a server gives are those of the local runtime, whichever way they travel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from dpt_deploy.client import Client
from dpt_deploy.core.compact import FORMS, decode, encode
from dpt_deploy.runtime import Prediction
from tests.serve.server.conftest import ADDRESSES, COMPACT, same


@pytest.mark.parametrize("shared_memory", [False, True])
@pytest.mark.parametrize("kind", ADDRESSES)
def test_maps_are_those_of_the_local_runtime_bit_by_bit(kind, shared_memory, server, frames, expected):
    with Client(server.address(kind), "plain", shared_memory=shared_memory) as client:
        assert client.ready() and client.model.heads == ("depth", "normals", "alpha")
        for frame, wanted in zip(frames, expected, strict=True):
            assert same(client(frame), wanted)
        assert client(frames[0]).depth.flags.writeable
        several = client(frames)  # a batch for each size
        for got, wanted in zip(several, expected, strict=True):
            for head, value in wanted.maps.items():  # another batch size, other products
                assert np.allclose(got.maps[head], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ADDRESSES)
def test_a_request_names_the_maps_that_it_wants(kind, server, frames, expected):
    with Client(server.address(kind), "plain") as client:
        found = client(frames[0], heads=["alpha"])
        assert found.depth is None and found.normals is None
        assert np.array_equal(found.alpha, expected[0].alpha)


def test_depth_for_a_canonical_focal_length_says_so(server, frames, expected):
    with Client(server.address("grpc"), "canonical") as client, Client(server.address("grpc"), "plain") as metric:
        found, same_frame = client(frames[0]), metric(frames[0])
    focal = 200 * frames[0].shape[1] / 160  # the tiny model stretches frames to 160x160
    assert (found.canonical_focal, same_frame.canonical_focal) == (focal, 0)
    assert np.array_equal(found.in_metres(2 * focal).depth, 2 * expected[0].depth)
    assert same_frame.in_metres(2 * focal) is same_frame


@pytest.mark.parametrize("form", COMPACT, ids=lambda form: form.output)
def test_compact_forms_are_those_of_the_library(form, server, frames, expected):
    with Client(server.address("grpc"), "all", forms={form.head: form.name}) as client:
        found = client(frames[1])
        truth = expected[1].maps[form.head]
        assert np.array_equal(found.maps[form.head], decode(form.head, form.name, encode(form.head, form.name, truth)))
        others = [head for head in FORMS if head != form.head]
        assert all(np.array_equal(found.maps[head], expected[1].maps[head]) for head in others)


def test_the_smallest_forms_are_a_quarter_of_the_bytes(server):
    with Client(server.address("grpc"), "all", forms="smallest") as client:
        assert sum(form.bytes for form in client.forms.values()) == 5
    with Client(server.address("grpc"), "all") as client:
        assert sum(form.bytes for form in client.forms.values()) == 20


@pytest.mark.parametrize("shared_memory", [False, True])
def test_many_clients_with_mixed_sizes_at_once(shared_memory, server, frames, expected):
    """Each request gets its own maps, whatever runs beside it."""
    before = counts(server)
    wrong: list[str] = []
    clients = [Client(server.address(kind), "plain", shared_memory=shared_memory) for kind in ADDRESSES]

    def work(worker: int) -> None:
        for i in range(12):
            wrong.extend(check(clients[worker % 2], (worker + 3 * i) % len(frames), frames, expected))

    in_threads(8, work)
    for client in clients:
        client.close()
    assert not wrong
    assert counted(server, before[0] + 96)


@pytest.mark.parametrize("shared_memory", [False, True])
def test_requests_of_one_size_run_together(shared_memory, server, frames, expected):
    """Triton joins requests that wait for the model at the same time: a burst does, sooner or later."""
    wrong: list[str] = []
    with Client(server.address("grpc"), "plain", shared_memory=shared_memory) as client:
        for _ in range(20):
            before = counts(server)
            start = threading.Barrier(8)

            def work(_: int, start: threading.Barrier = start) -> None:
                start.wait(60)
                for index in (0, 3, 6, 0):
                    wrong.extend(check(client, index, frames, expected))

            in_threads(8, work)
            requests, executions = counted(server, before[0] + 32)
            assert not wrong
            if executions - before[1] < requests - before[0]:
                return
    raise AssertionError("20 bursts of 32 requests from 8 threads, and none ran with another")


def check(client: Client, index: int, frames: list[np.ndarray], expected: list[Prediction]) -> list[str]:
    """What is wrong with the maps of a frame: another batch size, other products, so near is right."""
    try:
        found = client(frames[index])
        return [f"{index} {head}" for head, value in expected[index].maps.items()
                if not np.allclose(found.maps[head], value, rtol=1e-5, atol=1e-5)]
    except Exception as error:
        return [repr(error)]


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run it in so many threads at once, with the number of the thread."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def counted(server, images: int, seconds: float = 10) -> tuple[int, int]:
    """The counts when there are exactly so many images: Triton counts an answer after it was sent."""
    end = time.monotonic() + seconds
    while (found := counts(server))[0] != images:
        assert found[0] < images and time.monotonic() < end, (found, images)
        time.sleep(0.05)
    return found


def counts(server) -> tuple[int, int]:
    """Images and executions of the model `plain`, from the server's metrics."""
    lines = [line.split() for line in server.metrics().splitlines() if 'model="plain"' in line]
    return tuple(int(next(value for name, value in lines if name.startswith(what)))
                 for what in ("nv_inference_count", "nv_inference_exec_count"))
