"""Where samples come from: SynthHuman's files, or a prepared cache; and the split into training and validation."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from dpt_deploy.core.errors import BadInput
from train import exr
from train.geometry import AXES, parse_axes, with_axes
from train.layout import KINDS, NO_DEPTH, kind_of_index
from train.sample import Sample

FILES = ("rgb_{}.png", "alpha_{}.png", "depth_{}.exr", "normal_{}.exr", "cam_{}.txt")
_FILE = re.compile("|".join(pattern.replace(".", r"\.").format(r"(\d+)") + "$" for pattern in FILES))


class Source(Protocol):
    """Samples by position."""

    names: Sequence[str]
    kinds: Sequence[str]
    incomplete: Sequence[str]
    """Samples left out because a file is missing: one line each."""
    normal_axes: str
    """How the stored normal components are read."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> Sample:
        """The sample; raises `BadInput` that names it when it is missing or broken."""
        ...

    def fingerprint(self) -> str:
        """A hash of what is there: changes when samples are added or removed, or a file changes in size."""
        ...


@dataclass
class FolderSource:
    """SynthHuman's files in one or several folders."""

    root: Path
    folders: list[Path]
    """The folder of each sample."""
    names: list[str]
    kinds: list[str]
    incomplete: list[str]
    """Samples left out because a file is missing: one line each."""
    normal_axes: str = AXES
    """What the files' three normal components are."""

    def __len__(self) -> int:
        return len(self.names)

    def read(self, position: int) -> Sample:
        return read_files(self.folders[position], self.names[position], self.normal_axes)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for folder, name in zip(self.folders, self.names, strict=True):
            sizes = [os.stat(folder / pattern.format(name)).st_size for pattern in FILES]
            digest.update(f"{name} {sizes}\n".encode())
        return digest.hexdigest()


def open_source(root: Path | str, normal_axes: str = AXES) -> Source:
    """The samples under `root`: a prepared cache, one chunk, the chunks' parent, or a flat folder.

    `normal_axes` says what the files' normal components are; a cache holds them converted. Raises
    `BadInput` when there are no samples.
    """
    parse_axes(normal_axes)
    from train.cache import CacheSource, is_cache

    root = Path(root)
    if not root.is_dir():
        what = "a file" if root.is_file() else "nothing there"
        raise BadInput(
            f"data root {root}: expected a folder of SynthHuman samples, found {what}. Give --data-root the folder of "
            "SynthHuman_0000, or make data: python -m train.synthetic --out data/synthetic"
        )
    return CacheSource.open(root) if is_cache(root) else find_samples(root, normal_axes)


def find_samples(root: Path, normal_axes: str = AXES) -> FolderSource:
    """Every complete sample in `root` itself and in the folders right below it."""
    folders, names, incomplete, seen = [], [], [], 0
    for folder in [root, *sorted(entry for entry in root.iterdir() if entry.is_dir())]:
        present = set(os.listdir(folder))
        seen += len(present)
        here = {found[found.lastindex] for found in map(_FILE.match, present) if found}
        for name in sorted(here, key=int):
            missing = [pattern.format(name) for pattern in FILES if pattern.format(name) not in present]
            if missing:
                incomplete.append(f"{folder.name}, sample {name}: no {', '.join(missing)}")
            else:
                folders.append(folder)
                names.append(name)
    if not names:
        detail = f"{len(incomplete)} incomplete ones, such as {incomplete[0]}" if incomplete else f"{seen} other files"
        raise BadInput(
            f"data root {root}: expected SynthHuman samples ({', '.join(p.format('0000000') for p in FILES)}) in it or "
            f"in folders such as SynthHuman_0000, found {detail}. Check --data-root, or make data: "
            "python -m train.synthetic --out data/synthetic"
        )
    return FolderSource(root, folders, names, [kind_of_index(int(name)) for name in names], incomplete, normal_axes)


def read_files(folder: Path, name: str, normal_axes: str = AXES) -> Sample:
    """Read one sample's five files. Raises `BadInput` naming the file that is missing or broken."""
    rgb_path, alpha_path, depth_path, normal_path, cam_path = (folder / pattern.format(name) for pattern in FILES)
    bgr = _read_png(rgb_path, cv2.IMREAD_COLOR)
    alpha = _read_png(alpha_path, cv2.IMREAD_UNCHANGED)
    alpha = (alpha if alpha.ndim == 2 else alpha[..., -1 if alpha.shape[2] == 4 else 0]) / np.float32(
        np.iinfo(alpha.dtype).max
    )
    centimetres, normals = exr.read_depth(depth_path), with_axes(exr.read_vectors(normal_path), normal_axes)
    sizes = {path.name: array.shape[:2] for path, array in (
        (rgb_path, bgr), (alpha_path, alpha), (depth_path, centimetres), (normal_path, normals))}
    if len(set(sizes.values())) != 1:
        raise BadInput(f"{folder}: expected one size for all maps of a sample, received "
                       + ", ".join(f"{file} {h}x{w}" for file, (h, w) in sizes.items()) + ".")
    try:
        intrinsics = np.loadtxt(cam_path, ndmin=2)
    except (OSError, ValueError) as error:
        raise BadInput(f"{cam_path}: expected a 3x3 matrix of intrinsics, but it cannot be read ({error}).") from error
    if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all() or intrinsics[0, 0] <= 0:
        raise BadInput(f"{cam_path}: expected a 3x3 matrix of intrinsics [pixels], received {intrinsics.tolist()}.")
    valid = np.isfinite(centimetres) & (centimetres > 0) & (centimetres < NO_DEPTH)
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    facing = np.isfinite(length) & (length > 0.5)
    return Sample(
        name=name, kind=kind_of_index(int(name)), rgb=np.ascontiguousarray(bgr[..., ::-1]),
        depth=np.where(valid, centimetres / 100, 0).astype(np.float32),
        normals=np.where(facing, normals / np.where(facing, length, 1), 0).astype(np.float32),
        alpha=alpha.astype(np.float32), intrinsics=intrinsics,
    )


def _read_png(path: Path, flags: int) -> np.ndarray:
    pixels = cv2.imread(str(path), flags) if path.is_file() else None
    if pixels is None:
        raise BadInput(f"{path}: expected a picture, but it {'cannot be decoded' if path.exists() else 'is missing'}.")
    return pixels


def split(names: Sequence[str], kinds: Sequence[str], val_fraction: float) -> tuple[list[int], list[int]]:
    """Positions for training and for validation.

    By a hash of the name, so that a sample stays on its side whatever else is there; where a kind
    with two or more samples would have none for validation, the one with the lowest hash goes.
    """
    fractions = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 for name in names]
    held_out: set[int] = set()
    for kind in KINDS:
        members = [i for i, k in enumerate(kinds) if k == kind]
        chosen = {i for i in members if fractions[i] < val_fraction}
        if not chosen and len(members) > 1 and val_fraction > 0:
            chosen = {min(members, key=fractions.__getitem__)}
        if len(chosen) == len(members) > 1:
            chosen.remove(max(members, key=fractions.__getitem__))
        held_out |= chosen
    # Validation in the order of the hash: the first so many are of every kind.
    return [i for i in range(len(names)) if i not in held_out], sorted(held_out, key=fractions.__getitem__)
