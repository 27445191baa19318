"""OpenEXR files as NumPy arrays, through the `OpenEXR` package: opencv-python 5 cannot read them.

Channels are named with their layer, such as `depth.Z`, and in a file of several parts with their part, such as
`beauty.R`. Which of them is read:

- Depth: a channel called Z or depth, or in a layer called depth; else one called Y or V; else the only channel, or R
  where R, G and B are the same. The Z and Y of a triple X, Y, Z are no depth.
- Vectors: the triple B, G, R or X, Y, Z, in this order; of several, the one in a layer whose name has "normal".

Upper and lower case are the same. If several channels fit equally well and differ, the file is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpt_deploy.core.errors import BadInput, missing_package
from dpt_deploy.core.image_files import MAX_PIXELS, check_pixels
from dpt_deploy.report.writers import write_exr

_VECTOR_NAMES = (("B", "G", "R"), ("X", "Y", "Z"))  # the names of x, y, z in a file
_IN_MEMORY = "dpt-exr"
_SAME = 0.02  # lossy compression changes R, G and B of a gray picture differently; relative
_stderr = threading.Lock()


def read_channels(
    path: Path | str, max_pixels: int = MAX_PIXELS, data: bytes | memoryview | None = None
) -> dict[str, np.ndarray]:
    """All channels of all parts by name, each float32 (H, W).

    Args:
        path: The file.
        max_pixels: A file with more is refused.
        data: The content of the file, if it is in memory; `path` is then its name in messages.

    Raises:
        BadInput: The file cannot be read completely, or has more than `max_pixels`.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise missing_package("OpenEXR", "train", "read .exr files") from error
    if data is None and not os.path.isfile(path):
        raise BadInput(f"{path}: expected an OpenEXR file, but it is missing.")
    messages: list[str] = []
    try:
        with _library_messages() as messages, _on_disk(path, data) as source:
            with OpenEXR.File(source, header_only=True) as file:
                headers = [dict(part.header) for part in file.parts]
            for header in headers:
                low, high = header["dataWindow"]
                width, height = (high.astype(np.int64) - low + 1).tolist()
                check_pixels(str(path), (height, width), max_pixels)
            with OpenEXR.File(source, separate_channels=True) as file:
                parts = [({name: np.asarray(channel.pixels, np.float32) for name, channel in part.channels.items()})
                         for part in file.parts]
            if len(parts) != len(headers):  # the library leaves out damaged parts
                raise ValueError("its pixels are damaged or truncated")
    except (RuntimeError, ValueError, OSError, TypeError, KeyError, MemoryError, OverflowError) as error:
        detail = (messages or [str(error)])[0]
        detail = re.sub(rf"^(?:{re.escape(str(path))}|\S*{_IN_MEMORY}\S*): ", "", detail).removesuffix(".")
        raise BadInput(f"{path}: expected an OpenEXR file, but it cannot be read ({detail}).") from error
    if len(parts) == 1:
        return parts[0]
    return {f"{header.get('name') or i}.{name.removeprefix(str(header.get('name')) + '.')}": pixels
            for i, (header, part) in enumerate(zip(headers, parts, strict=True)) for name, pixels in part.items()}


@contextlib.contextmanager
def _on_disk(path: Path | str, data: bytes | memoryview | None) -> Iterator[str]:
    """The name under which the library can open a file; of one in memory, that of a file without a disk."""
    if data is None:
        yield str(path)
    elif hasattr(os, "memfd_create"):
        with open(os.memfd_create(_IN_MEMORY), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(prefix=_IN_MEMORY, suffix=".exr") as file:
            file.write(data)
            file.flush()
            yield file.name


def read_depth(
    path: Path | str, max_pixels: int = MAX_PIXELS, data: bytes | memoryview | None = None
) -> np.ndarray:
    """A depth map, float32 (H, W), in the unit of the file. Raises `BadInput` if it is not clear where it is.

    For the arguments, see `read_channels`.
    """
    channels = read_channels(path, max_pixels, data)
    layers = _layers(channels)
    ranks: tuple[list[str], ...] = ([], [], [])
    for layer, names in layers.items():
        for base, name in names.items():
            in_triple = {"X", "Y", "Z"} <= names.keys() and base in "XYZ"
            if (base in ("Z", "DEPTH") or layer.split(".")[-1] == "DEPTH") and not in_triple:
                ranks[0].append(name)
            elif base in ("Y", "V") and not in_triple:
                ranks[1].append(name)
            elif (base in "RGB" and {"R", "G", "B"} <= names.keys()) or len(channels) == 1 or base == "R":
                ranks[2].append(name)
    for names in ranks:
        if names:
            return _one(path, "depth", {name: channels[name] for name in names}, channels)
    raise BadInput(f"{path}: expected a depth channel such as Z, depth or Y, received {_listed(channels)}.")


def read_vectors(
    path: Path | str, max_pixels: int = MAX_PIXELS, data: bytes | memoryview | None = None
) -> np.ndarray:
    """A vector map, float32 (H, W, 3): x, y, z. Raises `BadInput` if it is not clear which channels these are.

    For the arguments, see `read_channels`.
    """
    channels = read_channels(path, max_pixels, data)
    triples = {}
    for layer, names in _layers(channels).items():
        for wanted in _VECTOR_NAMES:
            if all(name in names for name in wanted):
                picked = [names[name] for name in wanted]
                triples[layer, ", ".join(picked)] = picked
    named = {key: value for key, value in triples.items() if "NORMAL" in key[0]}
    if not triples:
        raise BadInput(f"{path}: expected channels R, G, B or X, Y, Z, received {_listed(channels)}.")
    stacked = {label: _stack(path, [channels[name] for name in picked])
               for (_, label), picked in (named or triples).items()}
    return _one(path, "normals", stacked, channels)


def _layers(channels: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Layer, in upper case -> last part of the name, in upper case -> name."""
    layers: dict[str, dict[str, str]] = {}
    for name in sorted(channels):
        layer, _, base = name.upper().rpartition(".")
        layers.setdefault(layer, {})[base] = name
    return layers


def _one(path: Path | str, what: str, fitting: dict[str, np.ndarray], channels: Mapping[str, Any]) -> np.ndarray:
    """The one map of those that fit; of several that are the same, the last one."""
    *others, chosen = fitting.values()
    for other in others:
        if other.shape != chosen.shape or not np.allclose(other, chosen, rtol=_SAME, equal_nan=True):
            raise BadInput(f"{path}: expected one {what} map, received several that differ: {'; '.join(fitting)}. "
                           f"The file has {_listed(channels)}. Remove those that are not the {what}.")
    return chosen


def _stack(path: Path | str, planes: list[np.ndarray]) -> np.ndarray:
    if len({plane.shape for plane in planes}) > 1:
        raise BadInput(f"{path}: expected channels of one size, received " +
                       ", ".join(f"{plane.shape[0]}x{plane.shape[1]}" for plane in planes) + ".")
    return np.stack(planes, axis=-1)


def _listed(channels: Mapping[str, Any]) -> str:
    return f"channels {', '.join(sorted(channels))}" if channels else "a file without channels"


@contextlib.contextmanager
def _library_messages() -> Iterator[list[str]]:
    """If the block raises, keep what the library printed off standard error; the list has its lines."""
    lines: list[str] = []
    # The library also prints through Python's standard output.
    with _stderr, tempfile.TemporaryFile() as captured, contextlib.redirect_stdout(io.StringIO()):
        try:
            kept = os.dup(2)
        except OSError:  # standard error is closed
            yield lines
            return
        os.dup2(captured.fileno(), 2)
        try:
            yield lines
        except BaseException:
            captured.seek(0)
            lines += captured.read(4096).decode(errors="replace").splitlines()
            raise
        else:  # it may be of another thread
            captured.seek(0)
            os.write(kept, captured.read())
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def write_depth(path: Path | str, depth: np.ndarray) -> None:
    """Write depth (H, W) as one channel Y, float32."""
    write_exr(path, {"Y": depth.astype(np.float32)})


def write_vectors(path: Path | str, vectors: np.ndarray) -> None:
    """Write vectors (H, W, 3) as channels B, G, R = x, y, z, float16."""
    write_exr(path, {name: vectors[..., i].astype(np.float16) for i, name in enumerate(_VECTOR_NAMES[0])})
