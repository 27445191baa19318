"""Parity inputs and the outputs of PyTorch FP32, stored in `reference.npz`. Does not need PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.contract import HEADS, Contract, Graph
from ..core.errors import BadBundle
from ..core.files import replacing
from .reference_file import read_arrays

FILE = "reference.npz"
MAX_CASES = 1000


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
    heads: tuple[str, ...] = HEADS
    """The heads of the contract. Every case must have the maps of all of them."""
    metric_depth: bool = True
    """Whether depth is in metres. Otherwise its errors are fractions of the range of the map."""

    def batches(self, graph: Graph) -> list[list[Case]]:
        """The cases in pairs of equal input size where possible, so that batches are tested too."""
        groups: dict[tuple, list[Case]] = {}
        for case in self.cases:
            groups.setdefault(case.input(graph).shape, []).append(case)
        return [group[i : i + 2] for group in groups.values() for i in range(0, len(group), 2)]

    def without_adversarial(self) -> Reference:
        """The cases that are not adversarial."""
        return self.only([case for case in self.cases if not case.adversarial])

    def only(self, cases: Iterable[Case]) -> Reference:
        """The same reference with these cases."""
        return Reference(tuple(cases), self.heads, self.metric_depth)

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
    def load(cls, path: Path, contract: Contract) -> Reference:
        """Read `reference.npz` and check that every case holds the inputs and maps of both graphs of `contract`.

        Raises:
            BadBundle: The file is not valid, lacks a case, input or map, or has one of another dtype or shape, or with
                values that are not finite.
        """
        try:
            arrays = read_arrays(path)
            names, adversarial = (arrays.pop(key, np.empty(0, np.float32)) for key in ("names", "adversarial"))
            if names.ndim != 1 or names.dtype.kind != "U" or not 0 < len(names) <= MAX_CASES:
                raise ValueError(f"names: expected 1 to {MAX_CASES} names, received {names.dtype.name:.50} "
                                 f"{list(names.shape)}")
            if adversarial.shape != names.shape or adversarial.dtype != np.bool_ or adversarial.all():
                raise ValueError(f"adversarial: expected a bool for each of {len(names)} cases, and a case that is not "
                                 "adversarial")
            cases = tuple(_case(arrays, i, str(name), bool(adversarial[i]), contract) for i, name in enumerate(names))
            if arrays:
                raise ValueError(f"it has {next(iter(arrays))!r:.100}, which belongs to no case")
        except ValueError as error:
            raise BadBundle(f"{path}: expected parity references, but {error}. Export the checkpoint again, or "
                            "import the model again.") from error
        return cls(cases, contract.heads, contract.depth == "metric")


def _case(arrays: dict[str, np.ndarray], i: int, name: str, adversarial: bool, contract: Contract) -> Case:
    """Take the arrays of case `i` out of `arrays`. Raises `ValueError` if one is missing or violates the contract."""
    def take(key: str, dtype: str, shape: tuple[int | str, ...], sizes: dict[str, int]) -> np.ndarray:
        array = arrays.pop(f"{i}/{key}", None)
        where = f"case {i} ({name!r:.100})"
        if array is None:
            raise ValueError(f"{where} lacks {key}")
        wanted = [sizes.get(length, length) for length in shape[1:]]  # without the batch axis
        fits = array.ndim == len(wanted) and all(
            have > 0 if isinstance(want, str) else have == want for have, want in zip(array.shape, wanted, strict=True)
        )
        if array.dtype != dtype or not fits:
            raise ValueError(f"{where}: {key} is {array.dtype.name:.50} {list(array.shape)}, expected {dtype} {wanted}")
        if dtype == "float32" and not np.isfinite(array).all():
            raise ValueError(f"{where}: {key} has values that are not finite")
        return array

    frame_spec, image_spec = contract.inputs("frame")["frame"], contract.inputs("model")["image"]
    frame = take("frame", frame_spec.dtype, frame_spec.shape, {})
    image = take("image", image_spec.dtype, image_spec.shape, {})
    sizes = {"height": frame.shape[0], "width": frame.shape[1]}
    maps: dict[Graph, dict[str, np.ndarray]] = {
        graph: {spec.name: take(f"{graph}/{spec.name}", spec.dtype, spec.shape, sizes)
                for spec in contract.outputs(graph).values()}
        for graph in ("model", "frame")
    }
    return Case(name, adversarial, frame, image, maps)
