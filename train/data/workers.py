"""Worker processes: how many, and mapping a function over items with them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from typing import Any, Literal

import cv2

from dpt_deploy.cli.options import MOST_WORKERS


def worker_count(workers: int | Literal["auto"]) -> int:
    """The number of processes that `workers` stands for.

    "auto" is one per usable core, at most 8. The processes that torchrun started on this machine share the cores.
    """
    if workers != "auto":
        return workers
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only some systems have it
        cores = os.cpu_count() or 1
    return max(1, min(MOST_WORKERS, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def parallel(
    function: Callable[[Any], Any], items: Sequence[Any], workers: int | Literal["auto"] = "auto"
) -> Iterator[Any]:
    """Map a function over items with several processes.

    At most a few dozen results per process wait at any time, whatever the number of items.

    Args:
        function: Can be pickled.
        items: What it is called with, one at a time.
        workers: Number of processes; up to 1 is in this process. See `worker_count`.

    Yields:
        The results, in the order of `items`.
    """
    workers = worker_count(workers)
    if workers <= 1 or len(items) < 4:
        yield from map(function, items)
        return
    chunk = max(1, min(16, len(items) // (4 * workers)))
    chunks = (items[i : i + chunk] for i in range(0, len(items), chunk))
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_opencv_thread)
    with _one_thread_each(), pool:
        waiting = [pool.submit(_run, function, chunk) for chunk in islice(chunks, 3 * workers)]
        while waiting:
            results = waiting.pop(0).result()
            if following := next(chunks, None):
                waiting.append(pool.submit(_run, function, following))
            yield from results


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes that start within the block compute with one thread, because there are as many of them as cores."""
    new = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"} - os.environ.keys()
    os.environ.update(dict.fromkeys(new, "1"))
    try:
        yield
    finally:
        for variable in new:
            os.environ.pop(variable, None)


def _run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def _one_opencv_thread() -> None:
    cv2.setNumThreads(1)
