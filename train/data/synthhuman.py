"""SynthHuman's files: names, units, index ranges, and how a sample is read.

The published set has 298,008 samples in chunks of 5,000 (SynthHuman_0000, ...): 98,040 faces, then 99,976 full bodies,
then 99,992 upper bodies. A sample is rgb_0000000.png, alpha_0000000.png, depth_0000000.exr (z-depth in centimetres),
normal_0000000.exr and cam_0000000.txt (3x3 intrinsics in pixels).
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from dpt_deploy.core.errors import BadInput

from ..commands import command
from . import exr
from .conventions import AXES, with_axes
from .sample import Sample

KINDS = ("face", "full_body", "upper_body")
FIRST_INDEX = {"face": 0, "full_body": 98_040, "upper_body": 198_016}
CHUNK = 5_000
NO_DEPTH = 65504.0
"""The depth value that means "unknown": the largest finite half."""
FILES = ("rgb_{}.png", "alpha_{}.png", "depth_{}.exr", "normal_{}.exr", "cam_{}.txt")
_FILE = re.compile("|".join(pattern.replace(".", r"\.").format(r"(\d+)") + "$" for pattern in FILES))


def kind_of_index(index: int) -> str:
    """face, full_body or upper_body, from the index in a sample's file names."""
    return max((first, kind) for kind, first in FIRST_INDEX.items() if index >= first)[1]


def chunk_name(index: int) -> str:
    """The folder of sample `index`."""
    return f"SynthHuman_{index // CHUNK:04d}"


@dataclass
class FolderSource:
    """A `Source` that reads SynthHuman's files from one or several folders."""

    root: Path
    folders: list[Path]
    """The folder of each sample."""
    names: list[str]
    kinds: list[str]
    incomplete: list[str]
    """Samples left out because a file is missing: one line each."""
    normal_axes: str = AXES
    """How the files store the components of normals."""
    input_size: ClassVar[None] = None
    resize: ClassVar[None] = None

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


def find_samples(root: Path, normal_axes: str = AXES) -> FolderSource:
    """Every complete sample in `root` and in the folders directly below it. Raises `BadInput` if there are none."""
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
            f"in folders such as SynthHuman_0000, found {detail}. Check --data-root, or generate data: "
            f"{command('train.synthetic')} --out data/synthetic"
        )
    return FolderSource(root, folders, names, [kind_of_index(int(name)) for name in names], incomplete, normal_axes)


def read_files(folder: Path, name: str, normal_axes: str = AXES) -> Sample:
    """Read the five files of sample `name`. Raises `BadInput` that names the file that is missing or broken."""
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
        raise BadInput(f"{path}: expected an image, but it {'cannot be decoded' if path.exists() else 'is missing'}.")
    return pixels
