"""Processes that read samples, and that signals to the process group do not end."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from multiprocessing import context, forkserver, popen_forkserver, process, resource_tracker


class _Popen(popen_forkserver.Popen):
    def terminate(self) -> None:
        self.kill()  # SIGTERM is blocked, and a main process that exits would wait forever


class _Reader(context.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: process.BaseProcess) -> _Popen:
        return _Popen(process_obj)


class _ReaderContext(context.ForkServerContext):
    Process = _Reader


def fork_server(preload: str, blocked: Iterable[int]) -> context.BaseContext:
    """A context whose processes do not receive the `blocked` signals.

    The main process alone then decides when to stop, and the batches of the present step still arrive.

    Args:
        preload: Module that the fork server imports once.
        blocked: Signals that the fork server, the resource tracker and the readers inherit as blocked.
    """
    chosen = _ReaderContext()
    chosen.set_forkserver_preload([preload])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        resource_tracker.ensure_running()  # it unblocks SIGINT and SIGTERM here
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return chosen
