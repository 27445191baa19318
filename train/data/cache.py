"""A cache of samples at training size: one memory-mapped array per map, and a checksum per sample.

    cache.json      format, input size, resize rule, the source's fingerprint, SHA-256 of samples.npz
    samples.npz     names, kinds, intrinsics, content boxes, CRC-32 per sample
    rgb.npy         uint8 (N, H, W, 3)
    depth.npy       float16 (N, H, W) [m]
    normals.npy     float16 (N, H, W, 3)
    alpha.npy       uint8 (N, H, W)
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import cannot_write, locked, sha256, write_json

from ..commands import command
from .conventions import AXES
from .sample import Sample

FORMAT = 1
STORED = {"rgb": (np.uint8, 3), "depth": (np.float16, 0), "normals": (np.float16, 3), "alpha": (np.uint8, 0)}
"""Map -> its type, and its channels; 0 stands for (H, W)."""


def is_cache(root: Path) -> bool:
    """Whether `root` is a prepared cache."""
    return os.path.isfile(root / "cache.json")  # Path.is_file raises for a name that is too long


def write_cache(root: Path, samples: Iterable[Sample], count: int, contract: Contract, source: str) -> int:
    """Write a cache. cache.json comes last, so that an interrupted cache is not taken for a whole one.

    Args:
        root: Folder of the cache.
        samples: Samples of the contract's input size.
        count: The largest number of samples; files are made for that many.
        contract: Gives input size and resize rule.
        source: Fingerprint of what the samples were made from.

    Returns:
        The number of samples written.

    Raises:
        BadInput: The folder cannot be written, or another process is writing there.
    """
    with locked(root, create=True):
        return _write_cache(root, samples, count, contract, source)


def _write_cache(root: Path, samples: Iterable[Sample], count: int, contract: Contract, source: str) -> int:
    h, w = contract.input_size
    try:
        (root / "cache.json").unlink(missing_ok=True)
        arrays = {
            name: np.lib.format.open_memmap(
                root / f"{name}.npy", "w+", dtype, (count, h, w, *((channels,) if channels else ()))
            ) for name, (dtype, channels) in STORED.items()
        }
        names, kinds, intrinsics, boxes, checksums = [], [], [], [], []
        for i, sample in enumerate(samples):
            for name, values in stored(sample).items():
                arrays[name][i] = values
            names.append(sample.name)
            kinds.append(sample.kind)
            intrinsics.append(sample.intrinsics)
            boxes.append(content_box(sample))
            checksums.append(_checksum({name: array[i] for name, array in arrays.items()}))
        for array in arrays.values():
            array.flush()
        with open(root / "samples.npz", "wb") as file:
            np.savez(file, names=np.array(names), kinds=np.array(kinds), intrinsics=np.array(intrinsics),
                     boxes=np.array(boxes), checksums=np.array(checksums, np.uint32))
    except OSError as error:
        raise cannot_write(root, error) from error
    write_json(root / "cache.json", {
        "format": FORMAT, "input_size": list(contract.input_size), "resize": contract.resize,
        "count": len(names), "source": source, "samples_sha256": sha256(root / "samples.npz"),
    })
    return len(names)


def stored(sample: Sample) -> dict[str, np.ndarray]:
    """The maps of a sample in the types of `STORED`, each contiguous."""
    maps = {"rgb": sample.rgb, "depth": sample.depth, "normals": sample.normals, "alpha": np.rint(sample.alpha * 255)}
    return {name: np.ascontiguousarray(values, STORED[name][0]) for name, values in maps.items()}


def content_box(sample: Sample) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of the content, without padding."""
    h, w = sample.alpha.shape
    if sample.inside is None:
        return 0, 0, h, w
    rows, columns = np.flatnonzero(sample.inside.any(axis=1)), np.flatnonzero(sample.inside.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def in_float32(values: np.ndarray) -> np.ndarray:
    """float16 as float32. PyTorch does it several times as fast as NumPy."""
    return torch.from_numpy(values if values.flags.writeable else values.copy()).float().numpy()


def inside_of(box: tuple[int, ...], size: tuple[int, int]) -> np.ndarray | None:
    """Where the content is, bool (H, W), of its top, left, bottom and right; None if that is everywhere."""
    top, left, bottom, right = box
    if (top, left, bottom, right) == (0, 0, *size):
        return None
    inside = np.zeros(size, bool)
    inside[top:bottom, left:right] = True
    return inside


def _checksum(maps: dict[str, np.ndarray]) -> int:
    checksum = 0
    for name in STORED:
        checksum = zlib.crc32(np.ascontiguousarray(maps[name]).data, checksum)
    return checksum


@dataclass
class CacheSource:
    """A `Source` that reads a prepared cache by memory mapping, and compares every sample with its checksum."""

    root: Path
    input_size: tuple[int, int]
    resize: str
    source: str
    names: list[str]
    kinds: list[str]
    intrinsics: np.ndarray
    boxes: np.ndarray
    checksums: np.ndarray
    _arrays: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    incomplete: tuple[str, ...] = ()  # such samples were skipped when the cache was made
    normal_axes: str = AXES  # the cache holds converted normals

    @classmethod
    def open(cls, root: Path) -> CacheSource:
        """Open a cache. Raises `BadInput` if it is damaged or has another format."""
        again = f"Make it again: {command('train.prepare')} --data-root DIR --out {root}"
        try:
            record = json.loads((root / "cache.json").read_text())
            if record["format"] != FORMAT:
                raise BadInput(f"{root}: expected cache format {FORMAT}, received {record['format']}. {again}")
            if sha256(root / "samples.npz") != record["samples_sha256"]:
                raise BadInput(f"{root}/samples.npz: its SHA-256 differs from the one in cache.json. {again}")
            table = np.load(root / "samples.npz")
            return cls(
                root, tuple(record["input_size"]), record["resize"], record["source"], table["names"].tolist(),
                table["kinds"].tolist(), table["intrinsics"], table["boxes"], table["checksums"],
            )
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(f"{root}: expected a prepared cache, but it cannot be read ({error}). {again}") from error

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_arrays": {}}  # every worker process maps the files itself

    def read(self, position: int) -> Sample:
        if not self._arrays:
            try:
                self._arrays = {name: np.load(self.root / f"{name}.npy", mmap_mode="r") for name in STORED}
            except (OSError, ValueError) as error:
                raise BadInput(f"{self.root}: the cache cannot be read ({error}).") from error
        maps = {name: np.array(array[position]) for name, array in self._arrays.items()}
        name = self.names[position]
        if _checksum(maps) != self.checksums[position]:
            raise BadInput(f"{self.root}: sample {name} is damaged (its checksum differs).")
        inside = inside_of(tuple(self.boxes[position].tolist()), self.input_size)
        return Sample(
            name, self.kinds[position], maps["rgb"], in_float32(maps["depth"]), in_float32(maps["normals"]),
            maps["alpha"] / np.float32(255), self.intrinsics[position], inside,
        )

    def fingerprint(self) -> str:
        return self.source
