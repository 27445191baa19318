"""Samples as tensors at the network's input size, in an order that (seed, epoch) fixes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from train.augment import Augment
from train.sample import Sample, to_network
from train.sources import Source

Key = tuple[int, int]
"""(epoch, position): what a sampler asks for."""


class MapDataset(Dataset):
    """Samples of `source` as tensors, by (epoch, position in `positions`).

    image uint8 (3, H, W) RGB, depth float32 (1, H, W) [m] with 0 for none, normals float32
    (3, H, W), alpha float32 (1, H, W), inside bool (1, H, W), focal float32 () [pixels along x].
    Augmentation is a function of (seed, epoch, position) alone, whichever process asks.

    A broken sample is reported under "broken"; with `replace_broken` the next one takes its place.
    """

    def __init__(
        self, source: Source, positions: Sequence[int], contract: Contract, augment: Augment | None = None,
        seed: int = 0, replace_broken: bool = False,
    ) -> None:
        prepared_with = getattr(source, "resize", contract.resize)
        if prepared_with != contract.resize:
            raise BadInput(
                f"{source.root} was prepared with --resize {prepared_with}, and the model takes {contract.resize}. "
                f"Prepare it again with --resize {contract.resize}, or train with --resize {prepared_with}."
            )
        self.source, self.positions, self.contract = source, positions, contract
        self.augment, self.seed, self.replace_broken = augment, seed, replace_broken

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index = key
        broken = []
        for attempt in range(min(10, len(self)) if self.replace_broken else 1):
            position = self.positions[(index + attempt) % len(self)]
            try:
                return self.tensors(self.source.read(position), epoch, position) | {"broken": broken}
            except BadInput as error:
                broken.append((self.source.names[position], str(error)))
        return {"broken": broken}

    def tensors(self, sample: Sample, epoch: int, position: int) -> dict[str, Any]:
        """`sample` augmented, resized, as tensors."""
        rng = np.random.default_rng((self.seed, epoch, position))
        if self.augment:
            sample = self.augment.geometry(sample, rng)
        sample = to_network(sample, self.contract)
        rgb = self.augment.image(sample.rgb, rng) if self.augment else sample.rgb
        inside = np.ones(sample.alpha.shape, bool) if sample.inside is None else sample.inside
        return {
            "image": torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))),
            "depth": torch.from_numpy(np.ascontiguousarray(sample.depth))[None],
            "normals": torch.from_numpy(np.ascontiguousarray(sample.normals.transpose(2, 0, 1))),
            "alpha": torch.from_numpy(np.ascontiguousarray(sample.alpha))[None],
            "inside": torch.from_numpy(np.ascontiguousarray(inside))[None],
            "focal": torch.tensor(sample.intrinsics[0, 0], dtype=torch.float32),
            "name": sample.name,
            "kind": sample.kind,
        }


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack tensors, list the rest; items that are only broken are left out."""
    whole = [item for item in items if "image" in item]
    batch: dict[str, Any] = {"broken": [entry for item in items for entry in item["broken"]]}
    for key in whole[0] if whole else ():
        if key != "broken":
            values = [item[key] for item in whole]
            batch[key] = torch.stack(values) if isinstance(values[0], torch.Tensor) else values
    return batch


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(count) that (seed, epoch) fixes."""
    return np.random.default_rng((seed, epoch, 0x0D97)).permutation(count)


class TrainBatches(Sampler):
    """Micro-batches of one rank, endlessly from (epoch, step) on.

    Step s of an epoch takes the s-th run of `batch * accumulate * world` samples of the epoch's
    order, whatever the number of ranks: rank r its r-th part.
    """

    def __init__(
        self, count: int, batch: int, accumulate: int, rank: int, world: int, seed: int, limit: int = 0
    ) -> None:
        self.count, self.batch, self.accumulate, self.rank, self.seed = count, batch, accumulate, rank, seed
        self.per_rank = batch * accumulate
        self.per_step = self.per_rank * world
        self.steps = max(1, count // self.per_step)
        if limit:
            self.steps = min(self.steps, -(-limit // accumulate))
        self.start = (0, 0)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, step = self.start
        while True:
            order = epoch_order(self.count, self.seed, epoch)
            order = np.resize(order, max(self.count, self.per_step))  # a set smaller than a batch repeats
            for s in range(step, self.steps):
                mine = order[s * self.per_step + self.rank * self.per_rank:][:self.per_rank]
                for j in range(0, self.per_rank, self.batch):
                    yield [(epoch, int(i)) for i in mine[j:j + self.batch]]
            epoch, step = epoch + 1, 0


class ValBatches(Sampler):
    """Every `world`-th validation sample, in batches, once."""

    def __init__(self, count: int, batch: int, rank: int, world: int, limit: int = 0) -> None:
        batches = [range(i, min(i + batch, count)) for i in range(0, count, batch)]
        self.batches = (batches[:limit] if limit else batches)[rank::world]

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.batches:
            yield [(0, i) for i in batch]

    def __len__(self) -> int:
        return len(self.batches)


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one answers it


def create_loader(dataset: MapDataset, batches: Sampler, workers: int, pin_memory: bool = False) -> DataLoader:
    """Batches in the sampler's order, read by `workers` processes that live as long as the loader.

    The processes come from a fork server: forking this one, with its thread pools (OpenEXR's,
    OpenMP's), can deadlock.
    """
    context = None
    if workers:
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            context.set_forkserver_preload(["train.dataset"])
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate, worker_init_fn=_start_worker,
        pin_memory=pin_memory, multiprocessing_context=context, persistent_workers=workers > 0,
        generator=torch.Generator(),  # of its own: starting workers must not draw from the model's random numbers
    )
