"""Map a function over items by several processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any

import cv2


def parallel(function: Callable[[Any], Any], items: Sequence[Any], workers: int = 0) -> Iterator[Any]:
    """Results of `function` over `items`, in order, by `workers` processes (0: one per core).

    At most a few dozen results per process are waiting at any time, whatever the number of items.
    """
    workers = workers or usable_cores()
    if workers == 1 or len(items) < 4:
        yield from map(function, items)
        return
    chunk = max(1, min(16, len(items) // (4 * workers)))
    chunks = (items[i : i + chunk] for i in range(0, len(items), chunk))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread)
    with _one_thread_each(), pool:
        waiting = [pool.submit(_run, function, chunk) for chunk in islice(chunks, 3 * workers)]
        while waiting:
            results = waiting.pop(0).result()
            if following := next(chunks, None):
                waiting.append(pool.submit(_run, function, following))
            yield from results


def usable_cores() -> int:
    """Processor cores that this process may use, shared with the others that torchrun started here."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start within the block compute with one thread: each is one of many."""
    new = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} - os.environ.keys()
    os.environ.update(dict.fromkeys(new, "1"))
    try:
        yield
    finally:
        for variable in new:
            os.environ.pop(variable, None)


def _run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def _one_thread() -> None:
    cv2.setNumThreads(1)
