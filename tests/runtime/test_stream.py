"""Runtime.stream: order, bounded reading ahead, errors at their place, and an early end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.runtime import load
from dpt_deploy.runtime.stream import ordered_map
from tests.tiny import photo


def test_a_stream_gives_what_single_calls_give_in_order(tiny_bundle: Path) -> None:
    frames = [photo(64 + 8 * (i % 3), 80, i) for i in range(7)]
    with load(tiny_bundle, "onnxruntime-cpu", threads=1) as runtime:
        streamed = list(runtime.stream(iter(frames), queue=3))
        assert len(streamed) == 7
        for frame, prediction in zip(frames, streamed, strict=True):
            np.testing.assert_allclose(prediction.depth, runtime(frame).depth, atol=1e-5)
        assert list(runtime.stream([])) == []
        with pytest.raises(BadInput, match="queue"):
            runtime.stream(frames, queue=0)


def test_several_workers_keep_the_order() -> None:
    def slow_first(i: int) -> int:
        time.sleep(0.05 if i % 4 == 0 else 0)
        return i

    assert list(ordered_map(slow_first, range(30), ahead=6, workers=4)) == list(range(30))


def test_no_more_is_read_than_the_caller_has_room_for() -> None:
    read = []

    def source() -> Iterator[int]:
        for i in range(100):
            read.append(i)
            yield i

    stream = ordered_map(lambda i: i, source(), ahead=3, workers=2)
    for taken in range(5):
        assert next(stream) == taken
        time.sleep(0.05)  # time for a reader without a bound to run away
        assert len(read) <= taken + 1 + 3
    stream.close()


def test_reading_goes_on_while_the_caller_is_busy() -> None:
    read = threading.Semaphore(0)

    def source() -> Iterator[int]:
        for i in range(3):
            yield i
            read.release()

    stream = ordered_map(lambda i: i, source(), ahead=2, workers=1)
    next(stream)
    assert read.acquire(timeout=10) and read.acquire(timeout=10), "the second image waited for the caller"
    stream.close()


def test_errors_come_at_their_place() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 0
        yield 2

    stream = ordered_map(lambda i: 1 / i, source(), ahead=4, workers=2)
    assert next(stream) == 1
    with pytest.raises(ZeroDivisionError):
        next(stream)

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    stream = ordered_map(lambda i: i, broken(), ahead=4, workers=1)
    assert next(stream) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


def test_leaving_early_stops_the_reading_and_its_threads() -> None:
    before = threading.active_count()
    closed = threading.Event()

    def endless() -> Iterator[int]:
        i = 0
        try:
            while True:
                yield i
                i += 1
        finally:
            closed.set()

    source = endless()
    for i in ordered_map(lambda i: i, source, ahead=2, workers=2):
        if i == 3:
            break
    assert threading.active_count() == before
    source.close()
    assert closed.is_set()
