"""Validation: losses and task metrics on the held-out samples, and a picture of some samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.dataset import MapDataset, ValBatches, collate, create_loader
from ..data.sources import BrokenSamples
from ..data.statistics import Statistics
from ..data.synthhuman import KINDS
from ..model.forward import ForwardPass
from ..model.losses import Losses
from ..monitoring.pictures import sample_picture
from ..monitoring.progress import progress_bar
from ..monitoring.scores import ConstantScores, Scores
from ..monitoring.tables import Table
from .process import Interrupted, StopRequest, World


@dataclass(frozen=True)
class Validated:
    """The result of a validation."""

    row: dict[str, float]
    """val_loss, val_<head> and every metric over all samples; empty without samples."""
    table: Table
    """Every metric over all samples and per kind."""
    constants: Table
    """The scores of constant predictions on the same samples; empty if they were not asked for."""


class Validation:
    """Validates models on the samples of one data set.

    Args:
        dataset: The held-out samples; may be empty.
        forward: How the network is called.
        losses: The losses, with their weights.
        statistics: Give the constant predictions.
        world: The processes that share the samples.
        broken: Counts samples that cannot be read.
        batch_size: Images per batch of each process.
        workers: Number of processes that read samples.
        max_batches: Largest number of batches of all processes together; None for all.
    """

    def __init__(
        self, dataset: MapDataset, forward: ForwardPass, losses: Losses, statistics: Statistics, world: World,
        broken: BrokenSamples, batch_size: int, workers: int, max_batches: int | None = None,
    ) -> None:
        self.dataset, self.forward, self.losses, self.statistics = dataset, forward, losses, statistics
        self.world, self.broken = world, broken
        batches = ValBatches(len(dataset), batch_size, world.rank, world.size, max_batches)
        self.loader = create_loader(dataset, batches, min(workers, 2, len(batches)), world.device.type == "cuda")

    @torch.no_grad()
    def run(self, model: nn.Module, stop: StopRequest, constants: bool) -> Validated | None:
        """Validate a model, which is left in evaluation mode.

        Args:
            model: The model.
            stop: Asks this process to stop.
            constants: Whether to score constant predictions too.

        Returns:
            The result, the same on all ranks; None if any rank was asked to stop before the end.
        """
        if not len(self.dataset):
            return Validated({}, {}, {})
        model.eval()
        sums: dict[str, float] = {}
        count = 0
        scores = Scores()
        constant_scores = ConstantScores(self.statistics, self.losses.heads) if constants else None
        turns, batches = max(self.world.gather(len(self.loader))), iter(self.loader)
        for _ in progress_bar(range(turns), "validate", leave=False, disable=not self.world.is_main, mininterval=0.5):
            if self.world.any(stop.asked):
                return None
            try:
                with stop.interruptible():
                    batch = next(batches, None)
            except Interrupted:
                return None
            if batch is None:  # this process has one batch fewer than others
                continue
            for entry in batch["broken"]:
                self.broken.add(*entry)
            if "image" not in batch:
                continue
            batch = self.forward.to_device(batch)
            outputs = self.forward(model, batch)
            for name, value in self.losses.per_image(outputs, self.forward.truth(batch)).items():
                sums[name] = sums.get(name, 0.0) + value.double().sum().item()
            count += len(batch["image"])
            scores.add(self.forward.maps(outputs, batch), batch)
            if constant_scores:
                constant_scores.add(batch)
        return self._merged(sums, count, scores, constant_scores)

    def _merged(
        self, sums: dict[str, float], count: int, scores: Scores, constants: ConstantScores | None
    ) -> Validated:
        """The result of all processes together."""
        gathered = self.world.gather((sums, count, scores, constants))
        count = sum(part[1] for part in gathered)
        names = list(dict.fromkeys(name for part in gathered for name in part[0]))
        table = scores.merge([part[2] for part in gathered]).table()
        row = {f"val_{name}": sum(part[0].get(name, 0.0) for part in gathered) / max(1, count) for name in names}
        constant_table = constants.merge([part[3] for part in gathered]).table() if constants else {}
        return Validated(row | table["all"], table, constant_table)


class SamplePicture:
    """Draws a model's predictions for `count` samples, the same every time, taken from each kind in turn."""

    def __init__(self, dataset: MapDataset, kinds: Sequence[str], count: int, forward: ForwardPass) -> None:
        self.dataset, self.forward = dataset, forward
        queues = [[i for i, kind in enumerate(kinds) if kind == k] for k in KINDS]
        turns = sorted((turn, k, i) for k, queue in enumerate(queues) for turn, i in enumerate(queue))
        self.chosen = [i for _, _, i in turns[:count]]
        self._batch: dict[str, Any] = {}

    @torch.no_grad()
    def draw(self, model: nn.Module) -> np.ndarray:
        """uint8 (rows, columns, 3). The model is left in evaluation mode."""
        self._batch = self._batch or collate([self.dataset[0, i] for i in self.chosen])
        if "image" not in self._batch:
            return np.zeros((8, 8, 3), np.uint8)
        batch = self.forward.to_device(self._batch)
        model.eval()
        return sample_picture(self.forward.maps(self.forward(model, batch), batch), batch)
