"""One function over many items, in order, while the next ones are being read: what `Runtime.stream` does."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

QUEUE = 4
"""Images read ahead: enough that neither the reader nor the backend waits for the other's hiccups."""

Result = TypeVar("Result")


def in_order(function: Callable[[Any], Result], items: Iterable[Any], ahead: int, workers: int) -> Iterator[Result]:
    """`function` of each item, in the items' order, computed by `workers` threads.

    A thread of its own iterates `items`; it stays at most `ahead` items in front of the caller. An error of
    `items` or of `function` is raised at the place of its item, and ends the iteration.
    """
    answers: queue.SimpleQueue[concurrent.futures.Future[Result] | None] = queue.SimpleQueue()
    room = threading.Semaphore(ahead)
    stopped = threading.Event()
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="dpt-compute")

    def read() -> None:
        try:
            source = iter(items)
            while room.acquire() and not stopped.is_set():
                answers.put(pool.submit(function, next(source)))
        except StopIteration:
            pass
        except BaseException as error:  # handed over, and raised where the caller is
            failed: concurrent.futures.Future[Result] = concurrent.futures.Future()
            failed.set_exception(error)
            answers.put(failed)
        finally:
            answers.put(None)

    reader = threading.Thread(target=read, name="dpt-read", daemon=True)
    reader.start()
    try:
        while (answer := answers.get()) is not None:
            result = answer.result()
            room.release()
            yield result
    finally:
        stopped.set()
        room.release()
        pool.shutdown(cancel_futures=True)
        reader.join()
