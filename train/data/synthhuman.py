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
from dpt_deploy.core.files import existing_file
from dpt_deploy.core.image_files import MAX_PIXELS, decode, read_image

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
_CAMERA_BYTES = 4096  # a matrix takes 250
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

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for folder, name in zip(self.folders, self.names, strict=True):
            sizes = [os.stat(folder / pattern.format(name)).st_size for pattern in FILES]
            digest.update(f"{name} {sizes}\n".encode())
        return digest.hexdigest()


def find_samples(root: Path, normal_axes: str = AXES, max_pixels: int = MAX_PIXELS) -> FolderSource:
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
    kinds = [kind_of_index(int(name)) for name in names]
    return FolderSource(root, folders, names, kinds, incomplete, normal_axes, max_pixels)


def read_files(folder: Path, name: str, normal_axes: str = AXES, max_pixels: int = MAX_PIXELS) -> Sample:
    """Read the five files of sample `name`. Raises `BadInput` that names the file that is missing or broken."""
    rgb_path, alpha_path, depth_path, normal_path, cam_path = (folder / pattern.format(name) for pattern in FILES)
    rgb, alpha = read_image(rgb_path, max_pixels), _read_alpha(alpha_path, max_pixels)
    centimetres = exr.read_depth(depth_path, max_pixels)
    normals = with_axes(exr.read_vectors(normal_path, max_pixels), normal_axes)
    sizes = {path.name: array.shape[:2] for path, array in (
        (rgb_path, rgb), (alpha_path, alpha), (depth_path, centimetres), (normal_path, normals))}
    if len(set(sizes.values())) != 1:
        raise BadInput(f"{folder}: expected one size for all maps of a sample, received "
                       + ", ".join(f"{file} {h}x{w}" for file, (h, w) in sizes.items()) + ".")
    intrinsics = _read_intrinsics(cam_path, rgb.shape[:2])
    valid = (centimetres > 0) & (centimetres < LARGEST_DEPTH)  # NaN is neither
    normals = np.where(np.isfinite(normals).all(axis=2, keepdims=True), normals, 0)
    length = np.linalg.norm(normals, axis=2, keepdims=True)
    facing = np.isfinite(length) & (length > 0.5)
    return Sample(
        name=name, kind=kind_of_index(int(name)), rgb=rgb,
        depth=np.where(valid, centimetres / 100, 0).astype(np.float32),
        normals=np.where(facing, normals / np.where(facing, length, 1), 0).astype(np.float32),
        alpha=alpha, intrinsics=intrinsics,
    )


def _read_alpha(path: Path, max_pixels: int) -> np.ndarray:
    """Coverage in [0, 1], float32 (H, W): the alpha channel, or the first of a file without."""
    alpha = decode(existing_file(path, "an alpha image"), cv2.IMREAD_UNCHANGED, max_pixels)
    if alpha.dtype not in (np.uint8, np.uint16):
        raise BadInput(f"{path}: expected an alpha image of 8 or 16 bits, received {alpha.dtype}.")
    alpha = alpha if alpha.ndim == 2 else alpha[..., -1 if alpha.shape[2] == 4 else 0]
    return (alpha / np.float32(np.iinfo(alpha.dtype).max)).astype(np.float32)


def _read_intrinsics(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The 3x3 matrix of a camera [pixels] for an image of `size` (H, W)."""
    what = f"{path}: expected a 3x3 matrix of intrinsics [pixels]"
    try:
        if (count := path.stat().st_size) > _CAMERA_BYTES:
            raise BadInput(f"{what}, received a file of {count} bytes.")
        lines = (line.partition("#")[0] for line in path.read_text().splitlines())
        rows = [line.split() for line in lines if line.strip()]
        matrix = np.array([[float(value) for value in row] for row in rows])
    except OSError as error:
        raise BadInput(f"{what}, but it cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise BadInput(f"{what}, but it cannot be read ({str(error)[:80]}).") from error
    if matrix.shape != (3, 3):
        raise BadInput(f"{what}, received {len(rows)} rows of "
                       f"{' or '.join(map(str, sorted({len(row) for row in rows}))) or 'no'} values.")
    side = max(size)
    focal, centre = matrix[(0, 1), (0, 1)], matrix[:2, 2]
    if not (np.isfinite(matrix).all() and np.allclose(matrix[2], (0, 0, 1), atol=1e-3)
            and (focal >= _SHORTEST_FOCAL * side).all() and (focal <= _LONGEST_FOCAL * side).all()
            and (np.abs(centre) <= _LONGEST_FOCAL * side).all()):
        raise BadInput(
            f"{what}, with a focal length of {_SHORTEST_FOCAL:g} to {_LONGEST_FOCAL:g} times the longer side of the "
            f"image ({side} pixels) and last row 0 0 1, received {matrix.tolist()}."
        )
    return matrix
