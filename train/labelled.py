"""Labelled images for the verdict on a bundle: what a change of precision costs in the metrics of training.

`open_labelled` gives what `dpt_deploy.judge(..., labelled=...)` takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.image_files import MAX_PIXELS
from dpt_deploy.core.places import base_name
from dpt_deploy.core.task import TASK

from .data.conventions import AXES
from .data.dataset import MapDataset, collate
from .data.sources import BrokenSamples, Source, open_source, split
from .data.statistics import spread
from .model.forward import in_metres
from .monitoring.scores import Scores

COUNT = 64
"""Images by default. The interval of a mean shrinks with the square root of their number."""


def open_labelled(
    root: Path | str, contract: Contract, training: Mapping[str, Any], count: int = COUNT,
    normal_axes: str | None = None, max_pixels: int = MAX_PIXELS, max_broken: int = 20,
    say: Callable[[str], None] = print,
) -> LabelledData:
    """Choose labelled images: those that training held out, and if they are too few, others as well.

    Args:
        root: Folder of samples, a prepared cache, or tar shards, as for training.
        contract: Of the bundle: input size and resize rule.
        training: The training record of the checkpoint, as `manifest.training`. It says which samples were held out
            and the focal length that depth is in. Without one, it is not known what training has seen.
        count: Largest number of images, evenly spaced over the data.
        normal_axes: How the files store the components of normals. None: as the training record says.
        max_pixels: Original files with more pixels are broken samples.
        max_broken: Broken and incomplete samples that are skipped and named before an error.
        say: Prints a line for each of them.

    Raises:
        BadInput: There are no samples, too many are broken, or they were prepared by another resize rule.
    """
    axes = normal_axes or training.get("config", {}).get("normal_axes") or AXES
    source = open_source(root, axes, max_pixels)
    fraction = training.get("config", {}).get("val_fraction")
    chosen, seen = _chosen(source, fraction, count)
    focal = training.get("canonical_focal") or 0.0
    return LabelledData(source, chosen, contract, focal, seen, BrokenSamples(source, max_broken, say))


def _chosen(source: Source, fraction: float | None, count: int) -> tuple[list[int], set[int] | None]:
    """Positions to read, in ascending order, and those that training has seen; None if that is not known."""
    if fraction is None:
        return spread(range(len(source)), count), None
    train, held_out = split(source.names, source.kinds, fraction)
    chosen = spread(sorted(held_out), count)
    return sorted([*chosen, *spread(train, count - len(chosen))]), set(train)


class LabelledData:
    """Samples at the network's input size, with ground truth. Read when first needed, and kept in memory.

    Implements `dpt_deploy.parity.task_loss.Labelled`.
    """

    def __init__(
        self, source: Source, positions: Sequence[int], contract: Contract, canonical_focal: float,
        trained_on: set[int] | None, broken: BrokenSamples,
    ) -> None:
        self.dataset = MapDataset(source, positions, contract)
        self.name = base_name(str(source.root)) or Path(source.root).resolve().name
        self.canonical_focal, self.trained_on, self.broken = canonical_focal, trained_on, broken

    @functools.cached_property
    def batches(self) -> list[dict[str, Any]]:
        """The samples that can be read, each as a batch of one. Raises `BadInput` if none can, or too many cannot."""
        batches = []
        for i, position in enumerate(self.dataset.positions):
            batch = collate([self.dataset[0, i]])
            for entry in batch["broken"]:
                self.broken.add(*entry)
            if "image" in batch:
                batches.append(batch | {"position": position})
        if not batches:
            raise BadInput(f"{self.dataset.source.root}: expected labelled samples, and none of {len(self.dataset)} "
                           f"could be read: {next(iter(self.broken.reasons.values()), 'no samples')}")
        return batches

    @property
    def seen(self) -> int | None:
        """At most so many of the images were used in training: those that its split, by name, does not hold out."""
        if self.trained_on is None:
            return None
        return sum(batch["position"] in self.trained_on for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def frame(self, index: int) -> np.ndarray:
        """The image, uint8 (H, W, 3) RGB of the network's input size."""
        return np.ascontiguousarray(self.batches[index]["image"][0].permute(1, 2, 0).numpy())

    def score(self, index: int, maps: Mapping[str, np.ndarray]) -> dict[tuple[str, str], float]:
        """The metrics of `TASK` for one image, as `train.evaluate` computes them; padding does not count.

        Normals are averaged over the pixels of the image.

        Args:
            index: Of the image.
            maps: Some of depth (H, W), normals (H, W, 3), alpha (H, W), as the frame graph returns them.

        Returns:
            Head and metric -> value; without an entry where the image has no valid pixels.
        """
        batch = self.batches[index]
        tensors = {head: torch.from_numpy(np.array(values, np.float32)) for head, values in maps.items()}
        tensors = {head: (values.permute(2, 0, 1) if head == "normals" else values[None])[None]
                   for head, values in tensors.items()}
        if "depth" in tensors:
            tensors["depth"] = in_metres(tensors["depth"], batch, self.canonical_focal)
        scores = Scores()
        scores.add(tensors, batch)
        row = scores.table()["all"]
        return {(head, metric): row[f"{head}_{metric}"] for head, metrics in TASK.items() for metric in metrics
                if f"{head}_{metric}" in row}
