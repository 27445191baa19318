"""Parity inputs and what PyTorch FP32 made of them: `reference.npz`, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.contract import Graph
from ..core.errors import BadBundle
from ..core.files import replacing

FILE = "reference.npz"


@dataclass(frozen=True)
class Case:
    """One parity input with the reference's answers."""

    name: str
    adversarial: bool
    """Adversarial inputs count for finiteness and for the FP32 budgets, not for the FP16 ones."""
    frame: np.ndarray
    """uint8 (H, W, 3) RGB."""
    image: np.ndarray
    """The model graph's input for that frame, float32 (3, h, w)."""
    maps: dict[Graph, dict[str, np.ndarray]]
    """Per graph and output name, without the batch axis."""

    def input(self, graph: Graph) -> np.ndarray:
        """What this graph takes, without the batch axis."""
        return self.image if graph == "model" else self.frame


@dataclass(frozen=True)
class Reference:
    """All parity cases of a bundle."""

    cases: tuple[Case, ...]

    def batches(self, graph: Graph) -> list[list[Case]]:
        """Cases in pairs of one input size: a graph must take a batch as it takes single images."""
        groups: dict[tuple, list[Case]] = {}
        for case in self.cases:
            groups.setdefault(case.input(graph).shape, []).append(case)
        return [group[i : i + 2] for group in groups.values() for i in range(0, len(group), 2)]

    def images_alone(self) -> Reference:
        """Without the adversarial inputs."""
        return Reference(tuple(case for case in self.cases if not case.adversarial))

    def save(self, path: Path) -> None:
        """Write `reference.npz`, atomically."""
        arrays: dict[str, np.ndarray] = {
            "names": np.array([case.name for case in self.cases]),
            "adversarial": np.array([case.adversarial for case in self.cases]),
        }
        for i, case in enumerate(self.cases):
            arrays[f"{i}/frame"], arrays[f"{i}/image"] = case.frame, case.image
            for graph, maps in case.maps.items():
                arrays |= {f"{i}/{graph}/{name}": value for name, value in maps.items()}
        with replacing(path) as temporary:
            np.savez(temporary, **arrays)

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read `reference.npz`. Raises `BadBundle` when it is not one."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            names, adversarial = arrays["names"], arrays["adversarial"]
            cases = []
            for i, name in enumerate(names):
                maps: dict[Graph, dict[str, np.ndarray]] = {"model": {}, "frame": {}}
                for key, value in arrays.items():
                    parts = key.split("/")
                    if parts[0] == str(i) and len(parts) == 3:
                        maps[parts[1]][parts[2]] = value
                cases.append(Case(str(name), bool(adversarial[i]), arrays[f"{i}/frame"], arrays[f"{i}/image"], maps))
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise BadBundle(f"{path}: expected parity references, but {error}. Export the checkpoint again.") from error
        return cls(tuple(cases))
