"""This process among others: torchrun's group, and signals that ask it to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from dpt_deploy.core.errors import BadInput

from ..signals import STOP_SIGNALS


@dataclass(frozen=True)
class World:
    """This process, and the group it belongs to."""

    rank: int
    size: int
    """Number of processes."""
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> list[float]:
        """Each of `values` (N,), on the device of this process, summed over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values.tolist()

    def any(self, value: bool) -> bool:
        """Whether `value` is true in any process."""
        return value if self.size == 1 else self.sum(torch.tensor([float(value)], device=self.device))[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """The `value` of every process, on every process."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered


def join(device: str) -> World:
    """Join the group that torchrun started; without torchrun, a group of one.

    Args:
        device: auto, cpu, cuda or cuda:N; cuda is the GPU of this rank.

    Raises:
        BadInput: There is no such device.
    """
    local, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise BadInput(f"device: expected auto, cpu, cuda or cuda:0, received {device!r}.") from error
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise BadInput("device: expected a GPU, but PyTorch finds none. Give --device cpu, or install the driver.")
        chosen = torch.device("cuda", local if chosen.index is None else chosen.index)
        torch.cuda.set_device(chosen)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(dist.get_rank() if size > 1 else 0, size, chosen)


def leave(world: World) -> None:
    """Leave the group."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and has saved its state.

    Args:
        text: What was saved, and how to go on.
        number: The signal that asked.
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.status = 128 + number
        """Exit status: 130 after Ctrl-C, 143 after SIGTERM, as shells report signals."""


class Interrupted(KeyboardInterrupt):
    """A signal ended a block of `StopRequest.interruptible`."""


class StopRequest:
    """A context in which signals that end a job set `received` instead of ending the process.

    Further signals change nothing, because a job often gets the same one twice: from a launcher, and for its group.
    Only a second Ctrl-C that comes two seconds after the first or later interrupts at once.
    """

    def __init__(self) -> None:
        self.received = 0
        """Number of the first signal; 0 before it."""
        self._received_at = 0.0
        self._alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
        self._interruptible = False
        self._depth = 0
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has arrived."""
        return self.received > 0

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth == 1 and threading.current_thread() is threading.main_thread():  # Python allows it only there
            for number in STOP_SIGNALS:
                if number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        while self._before and not self._depth:
            signal.signal(*self._before.popitem())

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block without lasting effects, which a signal ends at once by raising `Interrupted`.

        Has no effect if there are several processes: they must stop at the same step.
        """
        self._interruptible = self._alone
        try:
            if self._interruptible and self.asked:
                raise Interrupted
            yield
        finally:
            self._interruptible = False
        if self._alone and self.asked:  # an exception that a handler raises within a destructor is lost
            raise Interrupted

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.received, self._received_at = number, time.monotonic()
            if int(os.environ.get("RANK", 0)) == 0:
                with contextlib.suppress(OSError):  # print() may be what the signal has interrupted
                    os.write(2, f"\nreceived {signal.Signals(number).name}: saving, then stopping\n".encode())
            if self._interruptible:
                self._interruptible = False
                raise Interrupted
        elif number == signal.SIGINT and time.monotonic() - self._received_at > 2:
            raise KeyboardInterrupt
