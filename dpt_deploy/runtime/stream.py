"""An ordered, bounded, multi-threaded map over an iterable, for `Runtime.stream`."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

QUEUE = 4
"""Images to read ahead. Absorbs short delays of the reader and the backend."""

Result = TypeVar("Result")


def ordered_map(function: Callable[[Any], Result], items: Iterable[Any], ahead: int, workers: int) -> Iterator[Result]:
    """Apply `function` to items in threads and yield the results in order.

    Args:
        function: Called in `workers` threads.
        items: Iterated in a separate thread. An error of `items` or `function` is raised in order and ends the
            iteration.
        ahead: How many items to read ahead of the caller at most.
        workers: Number of threads that call `function`.
    """
    results: queue.SimpleQueue[concurrent.futures.Future[Result] | None] = queue.SimpleQueue()
    room = threading.Semaphore(ahead)
    stopped = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="dpt-compute")

    def read() -> None:
        try:
            source = iter(items)
            while room.acquire() and not stopped.is_set():
                results.put(pool.submit(function, next(source)))
        except StopIteration:
            pass
        except BaseException as error:  # raised in the caller's thread
            failed: concurrent.futures.Future[Result] = concurrent.futures.Future()
            failed.set_exception(error)
            results.put(failed)
        finally:
            results.put(None)

    reader = threading.Thread(target=read, name="dpt-read", daemon=True)
    reader.start()
    try:
        while (pending := results.get()) is not None:
            result = pending.result()
            room.release()
            yield result
    finally:
        stopped.set()
        room.release()
        pool.shutdown(cancel_futures=True)
        reader.join()
