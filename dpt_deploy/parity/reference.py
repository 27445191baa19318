"""Parity inputs and the outputs of PyTorch FP32, stored in `reference.npz`. Does not need PyTorch."""

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
    """One parity input with its reference outputs."""

    name: str
    adversarial: bool
    """Adversarial inputs must give finite outputs and meet the FP32 budgets, but not the FP16 budgets."""
    frame: np.ndarray
    """uint8 (H, W, 3) RGB."""
    image: np.ndarray
    """The model graph's input for that frame, float32 (3, h, w)."""
    maps: dict[Graph, dict[str, np.ndarray]]
    """Reference outputs by graph and name, without the batch axis."""

    def input(self, graph: Graph) -> np.ndarray:
        """The input of this graph, without the batch axis."""
        return self.image if graph == "model" else self.frame


@dataclass(frozen=True)
class Reference:
    """All parity cases of a bundle."""

    cases: tuple[Case, ...]

    def batches(self, graph: Graph) -> list[list[Case]]:
        """The cases in pairs of equal input size where possible, so that batches are tested too."""
        groups: dict[tuple, list[Case]] = {}
        for case in self.cases:
            groups.setdefault(case.input(graph).shape, []).append(case)
        return [group[i : i + 2] for group in groups.values() for i in range(0, len(group), 2)]

    def without_adversarial(self) -> Reference:
        """The cases that are not adversarial."""
        return Reference(tuple(case for case in self.cases if not case.adversarial))

    def save(self, path: Path) -> None:
        """Write `reference.npz` atomically."""
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
        """Read `reference.npz`. Raises `BadBundle` if it is not valid."""
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
