"""Samples as tensors at the network's input size, in an order that depends only on seed and epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput

from .augmentation import Augment
from .sample import Sample, to_network
from .sources import Source
from .workers import reader_context, start_reader

Key = tuple[int, int]
"""(epoch, index): what a sampler asks for."""


class MapDataset(Dataset):
    """Samples as tensors, by (epoch, index).

    An item has image uint8 (3, H, W) RGB, depth float32 (1, H, W) [m] with 0 for unknown, normals float32 (3, H, W),
    alpha float32 (1, H, W), inside bool (1, H, W), focal float32 () [pixels along x], name and kind. "broken" lists
    (name, reason) of samples that could not be read.

    Augmentation depends only on seed, epoch and position, not on the process that reads the sample.

    Args:
        source: Where samples are read from.
        positions: The samples to use; an index of this data set is an index into them.
        contract: Gives input size and resize rule.
        augment: Augmentations; None for none.
        seed: Seed of the augmentations.
        replace_broken: Whether the next sample takes the place of a broken one.

    Raises:
        BadInput: The source was prepared with another resize rule.
    """

    def __init__(
        self, source: Source, positions: Sequence[int], contract: Contract, augment: Augment | None = None,
        seed: int = 0, replace_broken: bool = False,
    ) -> None:
        if source.resize not in (None, contract.resize):
            raise BadInput(
                f"{source.root} was prepared with --resize {source.resize}, but the model expects {contract.resize}. "
                f"Prepare it again with --resize {contract.resize}, or train with --resize {source.resize}."
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
        """Augment and resize a sample, and convert it to tensors."""
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
    """A batch of the items that have an image; "broken" joins the lists of all items."""
    whole = [{key: value for key, value in item.items() if key != "broken"} for item in items if "image" in item]
    batch = default_collate(whole) if whole else {}
    return batch | {"broken": [entry for item in items for entry in item["broken"]]}


def epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(count) that depends only on seed and epoch."""
    return np.random.default_rng((seed, epoch, 0x0D97)).permutation(count)


class TrainBatches(Sampler):
    """Micro-batches of one rank, without end, from `start` = (epoch, step) on.

    Step s takes the s-th run of `batch * accumulate * world` samples in the order of the epoch, and rank r the r-th
    part of it. So the number of ranks does not change which samples a step sees.

    Args:
        count: Number of samples.
        batch: Images per micro-batch.
        accumulate: Micro-batches per step.
        rank: This process.
        world: Number of processes.
        seed: Seed of the order.
        limit: Largest number of micro-batches per epoch; None for all.
    """

    def __init__(
        self, count: int, batch: int, accumulate: int, rank: int, world: int, seed: int,
        limit: int | None = None,
    ) -> None:
        self.count, self.batch, self.accumulate, self.rank, self.seed = count, batch, accumulate, rank, seed
        self.per_rank = batch * accumulate
        self.per_step = self.per_rank * world
        self.steps = max(1, count // self.per_step)
        if limit is not None:
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
    """Every `world`-th batch of the validation samples, once; at most `limit` batches of all ranks together."""

    def __init__(self, count: int, batch: int, rank: int, world: int, limit: int | None = None) -> None:
        batches = [range(i, min(i + batch, count)) for i in range(0, count, batch)]
        self.batches = batches[:limit][rank::world]

    def __iter__(self) -> Iterator[list[Key]]:
        for batch in self.batches:
            yield [(0, i) for i in batch]

    def __len__(self) -> int:
        return len(self.batches)


def create_loader(dataset: MapDataset, batches: Sampler, workers: int, pin_memory: bool = False) -> DataLoader:
    """A loader whose worker processes live as long as it does; 0 workers read in this process."""
    return DataLoader(
        dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate, worker_init_fn=start_reader,
        pin_memory=pin_memory, multiprocessing_context=reader_context(__name__) if workers else None,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # starting workers must not draw from the model's random numbers
    )
