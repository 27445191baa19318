"""This process among others: torchrun's group, and signals that ask it to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from dpt_deploy.core.errors import BadInput


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
    """A run was asked to stop, and has saved its state."""


class StopRequest:
    """A context in which Ctrl-C and SIGTERM set `asked` instead of interrupting; the second one interrupts at once.

    Args:
        say: Prints a line when the first signal arrives.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked = False
        self._say = say
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self._say("stopping after this step, and saving ...")
