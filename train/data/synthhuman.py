"""SynthHuman's files: names, units, index ranges, and how a sample is read.

The published set has 298,008 samples in chunks of 5,000 (SynthHuman_0000, ...): 98,040 faces, then 99,976 full bodies,
then 99,992 upper bodies. A sample is rgb_0000000.png, alpha_0000000.png, depth_0000000.exr (z-depth in centimetres),
normal_0000000.exr and cam_0000000.txt (3x3 intrinsics in pixels).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np

from dpt_deploy.core import places
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import existing_file
from dpt_deploy.core.image_files import MAX_PIXELS, decode, decode_bytes, image_from_bytes, read_image
from dpt_deploy.geometry import parse_matrix, read_matrix

from ..commands import command
from . import exr
from .conventions import AXES, with_axes
from .sample import Sample

KINDS = ("face", "full_body", "upper_body")
FIRST_INDEX = {"face": 0, "full_body": 98_040, "upper_body": 198_016}
CHUNK = 5_000
NO_DEPTH = 65504.0
"""The depth value that means "unknown": the largest finite half [cm]."""
LARGEST_DEPTH = 20_000.0
"""Depths from here on [cm] mean "unknown" too, because lossy compression (DWAA, DWAB) changes `NO_DEPTH`: to 51000 at
its usual levels, to 27000 at extreme ones."""
_SHORTEST_FOCAL, _LONGEST_FOCAL = 0.05, 1000.0  # relative to the longer side of the image
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
    max_pixels: int = MAX_PIXELS
    """Files with more pixels are broken samples."""
    input_size: ClassVar[None] = None
    resize: ClassVar[None] = None

    def __len__(self) -> int:
        return len(self.names)

    def read(self, position: int) -> Sample:
        return read_files(self.folders[position], self.names[position], self.normal_axes, self.max_pixels)

    def files(self, position: int) -> list[tuple[str, bytes]]:
        """Name and content of the five files of a sample, in the order of `FILES`. Raises `BadInput`."""
        paths = [self.folders[position] / pattern.format(self.names[position]) for pattern in FILES]
        return [(path.name, places.read(str(path))) for path in paths]

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for folder, name in zip(self.folders, self.names, strict=True):
            sizes = [os.stat(folder / pattern.format(name)).st_size for pattern in FILES]
            digest.update(f"{name} {sizes}\n".encode())
        return digest.hexdigest()


def find_samples(root: Path, normal_axes: str = AXES, max_pixels: int = MAX_PIXELS) -> FolderSource:
    """Every complete sample in `root` and in the folders directly below it.

    Raises `BadInput` if there are none, or a folder cannot be listed.
    """
    folders, names, incomplete, seen = [], [], [], 0
    for folder in [root, *sorted(root / entry.name for entry in places.entries(str(root)) if entry.is_folder)]:
        present = {entry.name for entry in places.entries(str(folder))}
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
    kinds = [kind_of_index(int(name)) for name in names]
    return FolderSource(root, folders, names, kinds, incomplete, normal_axes, max_pixels)


def read_files(folder: Path, name: str, normal_axes: str = AXES, max_pixels: int = MAX_PIXELS) -> Sample:
    """Read the five files of sample `name`. Raises `BadInput` that names the file that is missing or broken."""
    rgb, alpha, depth, normal, cam = (folder / pattern.format(name) for pattern in FILES)
    files = rgb.name, alpha.name, depth.name, normal.name
    return _assembled(
        name, str(folder), files, read_image(rgb, max_pixels),
        decode(existing_file(alpha, "an alpha image"), cv2.IMREAD_UNCHANGED, max_pixels),
        exr.read_depth(depth, max_pixels), exr.read_vectors(normal, max_pixels), cam, read_matrix(cam), normal_axes)


def read_bytes(
    where: str, name: str, files: Sequence[tuple[str, bytes | memoryview]], normal_axes: str = AXES,
    max_pixels: int = MAX_PIXELS,
) -> Sample:
    """Read a sample from the contents of its files.

    Args:
        where: What holds them, such as a tar.
        name: Of the sample.
        files: Name and content of rgb, alpha, depth, normal and cam, in the order of `FILES`.
        normal_axes: How the files store the components of normals.
        max_pixels: Files with more pixels are refused.

    Raises:
        BadInput: A file is broken; the message names it.
    """
    (rgb, alpha, depth, normal, cam), data = ([f"{where}: {file}" for file, _ in files], [data for _, data in files])
    return _assembled(
        name, where, [file for file, _ in files[:4]], image_from_bytes(data[0], rgb, max_pixels),
        decode_bytes(data[1], alpha, cv2.IMREAD_UNCHANGED, max_pixels), exr.read_depth(depth, max_pixels, data[2]),
        exr.read_vectors(normal, max_pixels, data[3]), cam, parse_matrix(bytes(data[4]), cam), normal_axes)


def _assembled(
    name: str, where: str, files: Sequence[str], rgb: np.ndarray, alpha: np.ndarray, centimetres: np.ndarray,
    normals: np.ndarray, camera: Path | str, matrix: np.ndarray, normal_axes: str,
) -> Sample:
    """The sample that decoded files make; `files` are the names of the four maps, `matrix` is that in `camera`."""
    alpha = _coverage(f"{where}: {files[1]}", alpha)
    normals = with_axes(normals, normal_axes)
    sizes = {file: array.shape[:2] for file, array in zip(files, (rgb, alpha, centimetres, normals), strict=True)}
    if len(set(sizes.values())) != 1:
        raise BadInput(f"{where}: expected one size for all maps of a sample, received "
                       + ", ".join(f"{file} {h}x{w}" for file, (h, w) in sizes.items()) + ".")
    _check_camera(camera, matrix, rgb.shape[:2])
    valid = (centimetres > 0) & (centimetres < LARGEST_DEPTH)  # NaN is neither
    normals = np.where(np.isfinite(normals).all(axis=2, keepdims=True), normals, 0)
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    facing = np.isfinite(length) & (length > 0.5)
    return Sample(
        name=name, kind=kind_of_index(int(name)), rgb=rgb,
        depth=np.where(valid, centimetres / 100, 0).astype(np.float32),
        normals=np.where(facing, normals / np.where(facing, length, 1), 0).astype(np.float32),
        alpha=alpha, intrinsics=matrix,
    )


def _coverage(label: str, alpha: np.ndarray) -> np.ndarray:
    """Coverage in [0, 1], float32 (H, W): the alpha channel, or the first of a file without."""
    if alpha.dtype not in (np.uint8, np.uint16):
        raise BadInput(f"{label}: expected an alpha image of 8 or 16 bits, received {alpha.dtype}.")
    alpha = alpha if alpha.ndim == 2 else alpha[..., -1 if alpha.shape[2] == 4 else 0]
    return (alpha / np.float32(np.iinfo(alpha.dtype).max)).astype(np.float32)


def _check_camera(path: Path | str, matrix: np.ndarray, size: tuple[int, int]) -> None:
    """Raise `BadInput` unless the matrix (3, 3) is that of a camera for an image of `size` (H, W)."""
    side = max(size)
    focal, centre = matrix[(0, 1), (0, 1)], matrix[:2, 2]
    if not (np.isfinite(matrix).all() and np.allclose(matrix[2], (0, 0, 1), atol=1e-3)
            and (focal >= _SHORTEST_FOCAL * side).all() and (focal <= _LONGEST_FOCAL * side).all()
            and (np.abs(centre) <= _LONGEST_FOCAL * side).all()):
        raise BadInput(
            f"{path}: expected a 3x3 matrix of intrinsics [pixels], with a focal length of {_SHORTEST_FOCAL:g} to "
            f"{_LONGEST_FOCAL:g} times the longer side of the image ({side} pixels) and last row 0 0 1, received "
            f"{matrix.tolist()}."
        )
