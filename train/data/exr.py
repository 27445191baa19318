"""OpenEXR files as NumPy arrays, through the `OpenEXR` package: opencv-python 5 cannot read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpt_deploy.core.errors import BadInput, missing_package
from dpt_deploy.report.writers import write_exr

_VECTOR_NAMES = (("B", "G", "R"), ("X", "Y", "Z"))  # the names of x, y, z in a file


def read_channels(path: Path | str) -> dict[str, np.ndarray]:
    """All channels of a file by name, each float32 (H, W). Raises `BadInput` if the file cannot be read."""
    try:
        import OpenEXR
    except ImportError as error:
        raise missing_package("OpenEXR", "train", "read .exr files") from error
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            return {name.split(".")[-1].upper(): np.asarray(channel.pixels, np.float32)
                    for name, channel in file.channels().items()}
    except (RuntimeError, ValueError, OSError) as error:
        raise BadInput(f"{path}: expected an OpenEXR file, but it cannot be read ({error}).") from error


def read_depth(path: Path | str) -> np.ndarray:
    """A depth map, float32 (H, W), in the unit of the file: channel Z, Y or similar, else the first one."""
    channels = read_channels(path)
    if not channels:
        raise BadInput(f"{path}: expected a depth channel, received a file without channels.")
    name = next((name for name in ("Z", "Y", "DEPTH", "V", "R") if name in channels), sorted(channels)[0])
    return channels[name]


def read_vectors(path: Path | str) -> np.ndarray:
    """A vector map, float32 (H, W, 3): x, y, z are the channels B, G, R, or X, Y, Z."""
    channels = read_channels(path)
    for names in _VECTOR_NAMES:
        if all(name in channels for name in names):
            return np.stack([channels[name] for name in names], axis=-1)
    raise BadInput(f"{path}: expected channels R, G, B or X, Y, Z, received {', '.join(sorted(channels)) or 'none'}.")


def write_depth(path: Path | str, depth: np.ndarray) -> None:
    """Write depth (H, W) as one channel Y, float32."""
    write_exr(path, {"Y": depth.astype(np.float32)})


def write_vectors(path: Path | str, vectors: np.ndarray) -> None:
    """Write vectors (H, W, 3) as channels B, G, R = x, y, z, float16."""
    write_exr(path, {name: vectors[..., i].astype(np.float16) for i, name in enumerate(_VECTOR_NAMES[0])})
