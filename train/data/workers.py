"""Worker processes: how many, how they outlive signals, and mapping a function over items with them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any, Literal

import cv2

from dpt_deploy.cli.options import MOST_WORKERS

from ..signals import STOP_SIGNALS


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


def reader_context(preload: str) -> BaseContext:
    """How the processes of a data loader start: from a fork server, where the system has one.

    Forking a process with thread pools (OpenEXR, OpenMP) can deadlock. `preload` is a module that the fork server
    imports once.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from .readers import fork_server  # its imports exist only on such systems

    return fork_server(preload, STOP_SIGNALS)


def start_reader(worker: int) -> None:
    """Prepare a new process of a data loader.

    It uses one OpenCV thread, leaves signals that stop a run to the main process, and ends when that process does.
    PyTorch's own watchdog asks for the parent, which is the fork server, and that lives as long as a reader does.
    """
    _one_opencv_thread()
    threading.Thread(target=_end_with_main_process, daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_with_main_process() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


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
    # Each process receives the function once: it may hold the names of all samples.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin, (function,))
    with _one_thread_each(), pool:
        waiting = [pool.submit(_run, chunk) for chunk in islice(chunks, 3 * workers)]
        while waiting:
            results = waiting.pop(0).result()
            if following := next(chunks, None):
                waiting.append(pool.submit(_run, following))
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


_function: Callable[[Any], Any]


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    _one_opencv_thread()


def _run(items: Sequence[Any]) -> list[Any]:
    return [_function(item) for item in items]


def _one_opencv_thread() -> None:
    cv2.setNumThreads(1)
