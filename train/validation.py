"""Validation: losses and task metrics on the held-out samples, and a picture of some of them."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from train.dataset import MapDataset, ValBatches, collate, create_loader
from train.layout import KINDS
from train.network import depth_as_trained, maps_of, to_device
from train.samples import sample_picture
from train.scores import Scores
from train.statistics import ConstantScores

if TYPE_CHECKING:
    from train.trainer import Trainer


class Validation:
    """Validates a trainer's model as it stands."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        config, world = trainer.config, trainer.world
        self.dataset = MapDataset(trainer.source, trainer.val_positions, trainer.contract)
        self.batches = ValBatches(
            len(self.dataset), config.batch_size, world.rank, world.size, config.limit_val_batches
        )
        workers = min(2, trainer.workers, len(self.batches))
        self.loader = create_loader(self.dataset, self.batches, workers, world.device.type == "cuda")
        self.table: dict[str, dict[str, float]] = {}

    @torch.no_grad()
    def run(self) -> dict[str, float] | None:
        """val_loss, val_<head> and every metric over the validation set; {} where it is empty.

        None, on all ranks, when any was asked to stop on the way.
        """
        trainer = self.trainer
        if not len(self.dataset):
            return {}
        trainer.model.eval()
        sums: dict[str, float] = {}
        count = 0
        scores = Scores()
        constants = None if trainer.progress.constants else ConstantScores(trainer.statistics, trainer.config.tasks)
        for batch in tqdm(self.loader, "validate", leave=False, disable=not trainer.world.is_main,
                          mininterval=0.5 if sys.stderr.isatty() else 30):
            if trainer.stop.asked:
                break
            for entry in batch["broken"]:
                trainer.broken.add(*entry)
            if "image" not in batch:
                continue
            batch = to_device(batch, trainer.world.device, trainer.contract, trainer.config.channels_last)
            outputs = self._forward(batch)
            truth = depth_as_trained(batch, trainer.config.canonical_focal)
            for name, value in trainer.config.losses.per_image(outputs, truth).items():
                sums[name] = sums.get(name, 0.0) + value.double().sum().item()
            count += len(batch["image"])
            scores.add(self._maps(outputs, batch), batch)
            if constants:
                constants.add(batch)
        if any(trainer.world.gather(trainer.stop.asked)):
            return None
        return self._row(sums, count, scores, constants)

    def _row(self, sums, count, scores, constants) -> dict[str, float]:
        world = self.trainer.world
        gathered = world.gather((sums, count, scores, constants))
        count = sum(part[1] for part in gathered)
        names = list(dict.fromkeys(name for part in gathered for name in part[0]))
        if constants:
            self.trainer.progress.constants = constants.merge([part[3] for part in gathered]).table()
        self.table = scores.merge([part[2] for part in gathered]).table()
        row = {f"val_{name}": sum(part[0].get(name, 0.0) for part in gathered) / max(1, count) for name in names}
        return row | self.table["all"]

    def _forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        trainer = self.trainer
        with torch.autocast(trainer.world.device.type, trainer.amp, enabled=trainer.amp != torch.float32):
            return trainer.model(batch["pixels"])

    def _maps(self, outputs: dict[str, torch.Tensor], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        canonical = self.trainer.config.canonical_focal
        return maps_of(outputs, batch["focal"] / canonical if canonical else None)

    @torch.no_grad()
    def picture(self) -> np.ndarray:
        """uint8 (rows, columns, 3): some validation samples, of every kind in turn, always the same."""
        trainer = self.trainer
        if "image" not in self._shown:
            return np.zeros((8, 8, 3), np.uint8)
        batch = to_device(self._shown, trainer.world.device, trainer.contract, trainer.config.channels_last)
        trainer.model.eval()
        return sample_picture(self._maps(self._forward(batch), batch), batch)

    @functools.cached_property
    def _shown(self) -> dict[str, Any]:
        """The batch of the picture."""
        trainer, dataset = self.trainer, self.dataset
        if not len(dataset):
            dataset = MapDataset(trainer.source, trainer.train_positions, trainer.contract)
        kinds = [trainer.source.kinds[position] for position in dataset.positions]
        queues = [[i for i, kind in enumerate(kinds) if kind == k] for k in KINDS]
        turns = sorted((turn, k, i) for k, queue in enumerate(queues) for turn, i in enumerate(queue))
        return collate([dataset[0, i] for _, _, i in turns[: trainer.config.samples]])
