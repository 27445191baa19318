"""One process, or several under torchrun."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from dpt_deploy.core.errors import BadInput


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> list[float]:
        """Each of `values` (N,), on this process's device, summed over all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, on every process."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered


def join(device: str) -> World:
    """Join the processes that torchrun started, or be alone; `device` is auto, cpu, cuda or cuda:N."""
    local, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise BadInput(f"device: expected auto, cpu, cuda or cuda:0, received {device!r}.") from error
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise BadInput("device: expected a GPU, but PyTorch sees none. Give --device cpu, or install its driver.")
        chosen = torch.device("cuda", local if chosen.index is None else chosen.index)
        torch.cuda.set_device(chosen)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return World(dist.get_rank() if size > 1 else 0, size, chosen)


def leave(world: World) -> None:
    """Leave the group."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()
